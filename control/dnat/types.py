"""Words that every part of dnat shares: protocols, port ranges, purposes, leases, owners.

This module imports nothing but the standard library, so that pure code may import it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address
from typing import TypeVar

parse_address = lru_cache(maxsize=16384)(IPv4Address)
"""For text that names few addresses very often: parsing takes long."""
address_text = lru_cache(maxsize=16384)(str)
"""The way back, which takes long, too."""

_Member = TypeVar("_Member", bound=enum.IntEnum)


def members(kind: type[_Member]) -> Callable[[int], _Member]:
    """What ``kind(number)`` does, in a fraction of the time."""
    known = {int(member): member for member in kind}

    def member(number: int) -> _Member:
        found = known.get(number)
        return kind(number) if found is None else found

    return member


class Protocol(enum.IntEnum):
    """IANA protocol numbers that ports are leased for; ANY covers every protocol (as in RFC 6887, 11.1)."""

    ANY = 0
    ICMP = 1
    TCP = 6
    UDP = 17

    @property
    def label(self) -> str:
        """Lower-case name used in configuration files, tables and JSON."""
        return self.name.lower()

    def overlaps(self, other: Protocol) -> bool:
        """Whether one packet could belong to both."""
        return self is other or Protocol.ANY in (self, other)


class Purpose(enum.IntEnum):
    """What a host uses a lease for; a port never serves two purposes."""

    EPHEMERAL = 1
    """Source ports that the host's kernel picks itself (``ip_local_port_range``)."""
    TRANSLATED = 2
    """The pool that the host's data plane translates other local ports to."""
    EXPLICIT = 3
    """Ports that programs bind by number."""

    @property
    def label(self) -> str:
        return self.name.lower()


protocol_of, purpose_of = members(Protocol), members(Purpose)
"""From a number. Raise ValueError."""


class Parity(enum.IntEnum):
    """What the first port of a range must be (RFC 3550, section 11)."""

    ANY = 0
    EVEN = 1
    ODD = 2

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Consecutive ports, both ends included."""

    first: int
    """Lowest port, 1 to 65535."""
    last: int
    """Highest port, not below ``first``."""

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= 65535:
            raise ValueError(f"not a port range: {self.first}-{self.last}")

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def overlaps(self, other: PortRange) -> bool:
        return self.first <= other.last and other.first <= self.last

    @classmethod
    def parse(cls, text: str) -> PortRange:
        """``"5060"`` or ``"20000-20063"``; raises ValueError."""
        first, dash, last = text.partition("-")
        return cls(int(first), int(last) if dash else int(first))


@dataclass(frozen=True, slots=True)
class Lease:
    """Ports of one external address held by one host, as that host sees it."""

    id: int
    """Server's identifier, 64 bits, never 0."""
    address: IPv4Address
    """External address."""
    ports: PortRange
    protocol: Protocol
    purpose: Purpose
    expires_at: float
    """Seconds on the clock of whoever holds this record."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who gets the packets that arrive for some ports: what a router needs to know."""

    address: IPv4Address
    """External address."""
    ports: PortRange
    protocol: Protocol
    host: IPv4Address
    """The owner's LAN address."""
