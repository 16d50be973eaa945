"""What becomes of programs whose ports were taken back: found out when it happens, told in the log and by ``show``."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from dnat.daemon.announcer import Change, LeaseChange
from dnat.system import holders
from dnat.types import Lease, Protocol, Purpose

log = logging.getLogger(__name__)

KEPT = 32
"""Losses that are remembered."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A lease that this host had to give up."""

    lease: Lease
    reason: str
    at: float
    """Seconds since 1970."""
    programs: tuple[holders.Program, ...]
    """Those that had its ports open."""
    outcome: str
    """``ends``: connections and calls of these programs cannot go on, for their peers know these ports only.
    ``moves``: they were translated to these ports; their datagrams go on from others, their connections were closed.
    ``unused``: nobody used the ports. ``kept``: this host has got them again at once, and datagrams go on."""

    def __str__(self) -> str:
        lost = f"lost {self.lease.address}:{self.lease.ports} ({self.reason}): "
        if self.outcome == "unused":
            return lost + "no program used them"
        if self.outcome == "kept":
            return f"{lost}this host has them again, calls go on"
        if self.outcome == "moves":
            return lost + "datagrams that were translated to them go on from other ports"
        users = ", ".join(f"{p.name} ({p.pid}) at {', '.join(map(str, p.ports))}" for p in self.programs)
        return f"{lost}{users}: its calls and connections end; give it other ports and start it anew"

    def describe(self) -> dict[str, Any]:
        """For ``show``."""
        return {
            "address": str(self.lease.address),
            "first": self.lease.ports.first,
            "last": self.lease.ports.last,
            "purpose": self.lease.purpose.label,
            "at": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds"),
            "reason": self.reason,
            "outcome": self.outcome,
            "programs": [{"program": each.name, "pid": each.pid, "ports": list(each.ports)} for each in self.programs],
        }


class Losses:
    """The latest losses."""

    def __init__(self, translated: Callable[[], Collection[int]]) -> None:
        """``translated`` tells the ports that bindings lead to now."""
        self._translated = translated
        self._losses: deque[Loss] = deque(maxlen=KEPT)
        self._open = 0
        """How many of the latest are not settled."""

    def heard(self, change: Change) -> None:
        """What the announcer tells."""
        if isinstance(change, LeaseChange) and change.kind == "lost":
            self.note(change.lease, change.reason or "")

    def note(self, lease: Lease, reason: str) -> None:
        """Find out who used the ports, before anything else uses them. Takes milliseconds."""
        if lease.purpose is Purpose.TRANSLATED:
            programs: tuple[holders.Program, ...] = ()
            used = any(port in lease.ports for port in self._translated())
            outcome = "moves" if used else "unused"
        else:
            programs = holders.of(lease.ports, lease.protocol)
            outcome = "ends" if programs else "unused"
        self._losses.append(Loss(lease, reason, time.time(), programs, outcome))
        self._open = min(self._open + 1, KEPT)
        log.warning("%s", self._losses[-1])

    def settle(self, leases: Sequence[Lease]) -> None:
        """The host has asked for what it needs again, and holds these leases now."""
        for number in range(len(self._losses) - self._open, len(self._losses)):
            loss = self._losses[number]
            # Bindings ended with the lease, whichever ports there are now.
            if loss.outcome == "ends" and any(_covers(lease, loss.lease) for lease in leases):
                self._losses[number] = replace(loss, outcome="kept")
                log.info("%s", self._losses[number])
        self._open = 0

    def describe(self) -> list[dict[str, Any]]:
        """For ``show``, oldest first."""
        return [loss.describe() for loss in self._losses]


def _covers(lease: Lease, lost: Lease) -> bool:
    return (
        lease.address == lost.address
        and lost.ports.first in lease.ports
        and lost.ports.last in lease.ports
        and lease.protocol in (lost.protocol, Protocol.ANY)
    )
