"""Which ports may be granted at all, and where in the free ones a range is put."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from dnat.leases import bitmap
from dnat.types import Parity, PortRange, Protocol

Choose = Callable[[int], int]
"""``choose(n)``: a random number in ``range(n)``."""

BLOCK = 64
"""Ports that stay together as long as smaller wants find room elsewhere: the usual block of a host."""


@dataclass(frozen=True, slots=True)
class Pool:
    """External addresses and their grantable ports, the same on every address."""

    addresses: tuple[IPv4Address, ...]
    ports: tuple[PortRange, ...]
    """Granted by count or by number."""
    specific: tuple[PortRange, ...] = ()
    """Granted only to who asks for them by number (5060 of a SIP server)."""
    reserved: tuple[PortRange, ...] = ()
    """The same, and only to hosts that the server's policy names."""
    excluded: tuple[PortRange, ...] = ()
    """Never granted, whatever the others say."""

    def __post_init__(self) -> None:
        if not self.addresses or len(set(self.addresses)) != len(self.addresses):
            raise ValueError("a pool needs external addresses, each once")
        if not self.ports:
            raise ValueError("a pool needs ports")

    @property
    def by_count(self) -> int:
        """What may be granted to who asks for a number of ports, as a bitmap."""
        return bitmap.union(self.ports) & ~bitmap.union((*self.reserved, *self.excluded))

    @property
    def by_number(self) -> int:
        """What may be granted to who asks for particular ports, as a bitmap."""
        return bitmap.union((*self.ports, *self.specific, *self.reserved)) & ~bitmap.union(self.excluded)

    @property
    def ranges(self) -> tuple[PortRange, ...]:
        """All that may be leased."""
        return tuple(bitmap.ranges(self.by_number))


def classes(protocol: Protocol) -> tuple[Protocol, ...]:
    """The protocols that a lease occupies ports of."""
    return (Protocol.ICMP, Protocol.TCP, Protocol.UDP) if protocol is Protocol.ANY else (protocol,)


class AddressSpace:
    """The occupied ports of one external address, each protocol for itself."""

    __slots__ = ("held", "leased")

    def __init__(self) -> None:
        self.leased = dict.fromkeys(classes(Protocol.ANY), 0)
        self.held = dict.fromkeys(classes(Protocol.ANY), 0)

    def occupied(self, protocol: Protocol) -> int:
        """Ports that a lease or a hold of anyone keeps from being leased for the protocol."""
        result = 0
        for each in classes(protocol):
            result |= self.leased[each] | self.held[each]
        return result


def occupy(map_: dict[Protocol, int], ports: PortRange, protocol: Protocol) -> None:
    bits = bitmap.bits_of(ports)
    for each in classes(protocol):
        map_[each] |= bits


def vacate(map_: dict[Protocol, int], ports: PortRange, protocol: Protocol) -> None:
    bits = bitmap.bits_of(ports)
    for each in classes(protocol):
        map_[each] &= ~bits


def pick(free: int, count: int, parity: Parity, choose: Choose) -> PortRange | None:
    """A run of ``count`` free ports, at random (RFC 6056) among the places that break up the pool least.

    For wants smaller than a block these are blocks that are broken already; else, aligned places; else, any.
    """
    starts = bitmap.runs(free, count) & bitmap.starts_with(parity)
    if not starts:
        return None
    size = 1 << (count - 1).bit_length()
    aligned = starts & bitmap.multiples(size)
    if size < BLOCK:
        broken = bitmap.runs(free & ~bitmap.blocks(free, BLOCK), count)
        starts = (aligned & broken) or (starts & broken) or aligned or starts
    else:
        starts = aligned or starts
    first = bitmap.nth(starts, choose(starts.bit_count()))
    return PortRange(first, first + count - 1)


def longest(free: int, below: int, parity: Parity) -> int:
    """The length of the longest run of free ports that is shorter than ``below``; 0 if there is none."""
    low, high = 0, below - 1
    allowed = bitmap.starts_with(parity)
    while low < high:
        middle = (low + high + 1) // 2
        if bitmap.runs(free, middle) & allowed:
            low = middle
        else:
            high = middle - 1
    return low
