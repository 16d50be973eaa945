"""INVALIDATEs that wait for their ACK, and warnings about ports that were never leased."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from dnat.pap.answers import Destination
from dnat.pap.backoff import Backoff, Draw
from dnat.pap.messages import AGENT_PORT, LeaseInfo, Result

KEPT = 120.0
"""Seconds for which an INVALIDATE is repeated."""
WARNING_INTERVAL = 1.0
"""Seconds between two warnings to one host: a stack that goes astray does so with every packet."""
MAX_WARNED = 1024
"""Hosts whose last warning is remembered; more than that are not warned."""


@dataclass(slots=True, eq=False)
class Invalidation:
    """One INVALIDATE and its repeats."""

    transaction: int
    host: IPv4Address
    """LAN address of the host that it goes to."""
    host_id: bytes | None
    """None for a host that holds nothing."""
    leases: tuple[LeaseInfo, ...]
    reason: Result
    text: str | None
    backoff: Backoff | None = None
    """None until it has left for the first time."""
    until: float = 0.0

    @property
    def destination(self) -> Destination:
        return (self.host, AGENT_PORT)

    @property
    def warning(self) -> bool:
        """It names ports that were never leased."""
        return not all(info.id for info in self.leases)


class Invalidations:
    """All that are not acknowledged."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._open: dict[int, Invalidation] = {}
        self._warned_at: dict[IPv4Address, float] = {}

    def new(
        self,
        host: IPv4Address,
        host_id: bytes | None,
        leases: tuple[LeaseInfo, ...],
        reason: Result,
        text: str | None,
    ) -> Invalidation:
        """One that has not left; repeats begin with `start`."""
        return Invalidation(self._draw(), host, host_id, leases, reason, text)

    def start(self, invalidation: Invalidation, now: float) -> None:
        """It has left for the first time."""
        invalidation.backoff = Backoff(now, self._draw)
        invalidation.until = now + KEPT
        self._open[invalidation.transaction] = invalidation

    def find(self, transaction: int, host: IPv4Address) -> Invalidation | None:
        """The open one that an ACK from this host belongs to."""
        invalidation = self._open.get(transaction)
        return None if invalidation is None or invalidation.host != host else invalidation

    def close(self, invalidation: Invalidation) -> None:
        """It was acknowledged."""
        del self._open[invalidation.transaction]

    @property
    def next_deadline(self) -> float | None:
        return min((each.backoff.next_at for each in self._open.values() if each.backoff), default=None)

    def due(self, now: float) -> list[Invalidation]:
        """Those to send again now; those that nobody acknowledged for too long are given up."""
        result = []
        for invalidation in tuple(self._open.values()):
            if invalidation.backoff is None or invalidation.backoff.next_at > now:
                continue
            # A host without leases may be the invention of whoever sent the packet that this is about.
            if invalidation.until <= now or invalidation.host_id is None:
                del self._open[invalidation.transaction]
            else:
                invalidation.backoff.repeated(now)
                result.append(invalidation)
        return result

    def may_warn(self, host: IPv4Address, now: float) -> bool:
        """Whether a warning to the host would keep the rate limit; if so, it counts as sent."""
        self._warned_at = {each: at for each, at in self._warned_at.items() if at + WARNING_INTERVAL > now}
        if host in self._warned_at or len(self._warned_at) >= MAX_WARNED:
            return False
        self._warned_at[host] = now
        return True

    def forget_warnings(self, host: IPv4Address, lease: LeaseInfo) -> None:
        """The host has these ports by now: a warning repeated after that would take them from it."""
        for invalidation in tuple(self._open.values()):
            if invalidation.warning and invalidation.host == host:
                info = invalidation.leases[0]
                if info.address == lease.address and info.ports.overlaps(lease.ports):
                    del self._open[invalidation.transaction]
