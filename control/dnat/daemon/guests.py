"""Which local ports containers and virtual machines of a host speak from, and whether they do.

See `dnat.system.guests`. Their ports are few, so that many flows share one, as those of the host's own ephemeral ports
do: each costs one of the ports that the host translates to, whatever number of destinations it serves.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from typing import Any

from dnat.config import HostSettings
from dnat.errors import PlatformError
from dnat.leases.bitmap import ranges, union
from dnat.system import guests, local_sockets
from dnat.system.guests import Translation
from dnat.system.journal import Journal
from dnat.types import PortRange, Protocol

log = logging.getLogger(__name__)

Ports = tuple[PortRange, Protocol]

UNPRIVILEGED = PortRange(1024, 65535)
SHARE = 2
"""Guests take up at most one in so many of the ports that the host may translate to."""


def choose(taken: Iterable[PortRange], size: int) -> PortRange | None:
    """``size`` consecutive ports that are not taken, or the longest run of them if that is shorter; None: all are.

    The highest: by default no server leases those, so they are the least likely to be taken later.
    """
    runs = ranges(union([UNPRIVILEGED]) & ~union(taken))
    run = max(runs, key=lambda each: (min(len(each), size), each.first), default=None)
    return PortRange(max(run.first, run.last - size + 1), run.last) if run else None


class GuestKeeper:
    """Those of one host."""

    def __init__(self, settings: HostSettings) -> None:
        self._wanted = settings.translate_containers
        self._size = max(1, settings.translated_ports_max // SHARE)
        self._ports: PortRange | None = None
        self._reason = "" if self._wanted else "host.translate_containers is false"
        self._masquerader: str | None = None

    def ensure(
        self, journal: Journal, lan: str, external: IPv4Address, native: Sequence[Ports], mapped: Sequence[int]
    ) -> list[str]:
        """Translate guests if there are any; ``mapped``: local ports. Runs in a thread.

        Returns what was changed, in words. A host does without it: what goes wrong is told, and tried again.
        """
        taken = [ports for ports, _ in native] + [PortRange(port, port) for port in mapped]
        try:
            self._masquerader = guests.masquerader()
            if not self._wanted or self._masquerader is None:
                self._ports = None
                return guests.remove(journal)
            ports = self._choose(guests.ports_in_use(journal, external), taken)
            if ports is None:
                raise PlatformError("no local port is left for containers")
            own = {
                protocol: ranges(union(each for each, of in native if of.overlaps(protocol)))
                for protocol in (Protocol.TCP, Protocol.UDP)
            }
            changes = guests.ensure(journal, Translation(lan, external, ports, own))
            self._ports, self._reason = ports, ""
        except (PlatformError, OSError) as error:
            if self._reason != str(error):
                log.warning("containers and virtual machines are not translated: %s", error)
            self._ports, self._reason = None, str(error)
            return []
        return changes

    def _choose(self, current: PortRange | None, taken: list[PortRange]) -> PortRange | None:
        """The ports they have, as long as they may."""
        if current and len(current) <= self._size and not any(current.overlaps(each) for each in taken):
            return current
        used = [PortRange(port, port) for port in local_sockets.ports() if port]
        return choose([*taken, *used], self._size) or choose(taken, self._size)

    @property
    def translated(self) -> bool:
        """Whether guests speak from ports of this host."""
        return self._ports is not None

    def describe(self) -> dict[str, Any]:
        """The part ``containers`` of ``show -o json``."""
        ports = self._ports
        return {
            "translated": ports is not None,
            "masquerader": self._masquerader or "",
            "reason": self._reason,
        } | ({"first": ports.first, "last": ports.last} if ports else {})
