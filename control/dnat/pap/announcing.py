"""When a server says that it is there (docs/pap.md, 5; close to RFC 6887, 14.1.1)."""

from __future__ import annotations

from ipaddress import IPv4Address

from dnat.pap.answers import Destination
from dnat.pap.messages import AGENT_PORT

TIMES = (0.0, 0.25, 0.75, 1.75, 3.75, 7.75)
"""Seconds after the start: a LAN loses a datagram now and then, and a host may be a little later than its server."""


class Announcing:
    """The ANNOUNCEs of one start."""

    def __init__(self, broadcast: tuple[IPv4Address, ...] = (), now: float = 0.0) -> None:
        self.destinations: tuple[Destination, ...] = tuple((address, AGENT_PORT) for address in broadcast)
        self._due = [now + each for each in TIMES] if broadcast else []

    @property
    def next_at(self) -> float | None:
        """When one is due."""
        return self._due[0] if self._due else None

    def is_due(self, now: float) -> bool:
        """Whether to send one now; if so, it counts as sent."""
        if not self._due or now < self._due[0]:
            return False
        self._due = [each for each in self._due if each > now]
        return True
