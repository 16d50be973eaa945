"""Which ports may be granted at all, and where in the free ones a range is put."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from dnat.leases import bitmap
from dnat.leases.port_set import FULL, WORD, Parts, PortSet, parts
from dnat.types import Parity, PortRange, Protocol

Choose = Callable[[int], int]
"""``choose(n)``: a random number in ``range(n)``."""

BLOCK = WORD
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


_CLASSES = {each: (each,) for each in Protocol} | {Protocol.ANY: (Protocol.ICMP, Protocol.TCP, Protocol.UDP)}


def classes(protocol: Protocol) -> tuple[Protocol, ...]:
    """The protocols that a lease occupies ports of."""
    return _CLASSES[protocol]


class _Free:
    """What is free for one protocol: kept up to date where something changes, for pools are large and changes small."""

    __slots__ = ("blocks", "ports", "room")

    def __init__(self, ports: int) -> None:
        self.ports = PortSet(ports)
        self.blocks = 0
        """Aligned blocks that are free throughout; bit N is the block that begins with port N * BLOCK."""
        self.room = ports.bit_count()
        for block, bits in enumerate(self.ports.words):
            if bits == FULL:
                self.blocks |= 1 << block

    def replace(self, block: int, bits: int) -> None:
        """Have these ports of a block, and no others."""
        before = self.ports.words[block]
        if bits == before:
            return
        self.ports.replace(block, bits)
        self.room += bits.bit_count() - before.bit_count()
        if FULL in (bits, before):
            self.blocks ^= 1 << block


class AddressSpace:
    """The occupied ports of one external address, each protocol for itself."""

    __slots__ = ("_by_count", "_free", "held", "leased")

    def __init__(self, by_count: int) -> None:
        """``by_count``: what is granted to who asks for a number of ports."""
        self.leased = {each: PortSet() for each in classes(Protocol.ANY)}
        self.held = {each: PortSet() for each in classes(Protocol.ANY)}
        self._by_count = PortSet(by_count)
        self._free: dict[Protocol, _Free] = {}

    def occupied(self, protocol: Protocol) -> int:
        """Ports that a lease or a hold of anyone keeps from being leased for the protocol."""
        result = 0
        for each in classes(protocol):
            result |= self.leased[each].bits | self.held[each].bits
        return result

    def is_leased(self, ports: PortRange, protocol: Protocol) -> bool:
        """Whether a lease stands in the way of one for the range."""
        return _meets(self.leased, ports, protocol)

    def is_held(self, ports: PortRange, protocol: Protocol) -> bool:
        """Whether a hold of anyone stands in the way of a lease for the range."""
        return _meets(self.held, ports, protocol)

    def free(self, protocol: Protocol) -> int:
        """Ports that anybody may get by number of ports."""
        return self._free_for(protocol).ports.bits

    def free_blocks(self, protocol: Protocol) -> int:
        """The aligned blocks that are free throughout; bit N is the block that begins with port N * BLOCK."""
        return self._free_for(protocol).blocks

    def room(self, protocol: Protocol) -> int:
        """How many ports are free."""
        return self._free_for(protocol).room

    def occupy(self, sets: dict[Protocol, PortSet], ports: PortRange, protocol: Protocol) -> None:
        """Enter a range into `leased` or `held`."""
        touched = parts(ports)
        for each in classes(protocol):
            sets[each].add(touched)
        self._changed(touched)

    def vacate(self, sets: dict[Protocol, PortSet], ports: PortRange, protocol: Protocol) -> None:
        """Take a range out of `leased` or `held`."""
        touched = parts(ports)
        for each in classes(protocol):
            sets[each].remove(touched)
        self._changed(touched)

    def _free_for(self, protocol: Protocol) -> _Free:
        found = self._free.get(protocol)
        if found is None:
            found = self._free[protocol] = _Free(self._by_count.bits & ~self.occupied(protocol))
        return found

    def _changed(self, touched: Parts) -> None:
        for protocol, free in self._free.items():
            for block, _ in touched:
                taken = 0
                for each in classes(protocol):
                    taken |= self.leased[each].words[block] | self.held[each].words[block]
                free.replace(block, self._by_count.words[block] & ~taken)


def _meets(sets: dict[Protocol, PortSet], ports: PortRange, protocol: Protocol) -> bool:
    for word, bits in parts(ports):
        for each in classes(protocol):
            if sets[each].words[word] & bits:
                return True
    return False


def pick_blocks(free_blocks: int, count: int, parity: Parity, choose: Choose) -> PortRange | None:
    """What `pick` would return, where that is whole blocks; ``free_blocks``: as of `AddressSpace`."""
    size = 1 << (count - 1).bit_length()
    if count != size or size < BLOCK or parity is Parity.ODD:
        return None
    aligned = bitmap.runs(free_blocks, size // BLOCK)
    if size > BLOCK:
        aligned &= bitmap.multiples(size // BLOCK)
    if not aligned:
        return None
    first = bitmap.nth(aligned, choose(aligned.bit_count())) * BLOCK
    return PortRange(first, first + count - 1)


def pick(free: int, count: int, parity: Parity, choose: Choose) -> PortRange | None:
    """A run of ``count`` free ports, at random (RFC 6056) among the places that break up the pool least.

    For wants smaller than a block these are blocks that are broken already; else, aligned places; else, any.
    """
    size = 1 << (count - 1).bit_length()
    starts = bitmap.runs(free, count) & bitmap.starts_with(parity)
    if not starts:
        return None
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
