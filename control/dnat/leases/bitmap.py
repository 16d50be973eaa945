"""Sets of ports as big integers: bit N is port N. A search over all 65,536 takes some ten microseconds."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from dnat.types import Parity, PortRange

PORTS = 65536


def bits_of(ports: PortRange) -> int:
    return ((1 << len(ports)) - 1) << ports.first


def union(ranges: Iterable[PortRange]) -> int:
    result = 0
    for ports in ranges:
        result |= bits_of(ports)
    return result


@lru_cache(maxsize=32)
def multiples(of: int) -> int:
    """Every port that a power of two divides, 0 included."""
    return int(((1 << PORTS) - 1) // ((1 << of) - 1))


def starts_with(parity: Parity) -> int:
    """Every port of the parity."""
    if parity is Parity.ANY:
        return multiples(1)
    return multiples(2) if parity is Parity.EVEN else multiples(2) << 1


def runs(bits: int, length: int) -> int:
    """Where ``length`` consecutive members start; doubling makes that log2(length) shifts."""
    have = 1
    while have < length and bits:
        step = min(have, length - have)
        bits &= bits >> step
        have += step
    return bits


def blocks(bits: int, size: int) -> int:
    """The members that lie in aligned blocks of ``size`` (a power of two) that are members throughout."""
    result = runs(bits, size) & multiples(size)
    step = 1
    while step < size:
        result |= result << step
        step *= 2
    return result


def nth(bits: int, n: int) -> int:
    """The n-th member, counted from 0 in ascending order; there must be more than ``n``."""
    width = 1 << (bits.bit_length() - 1).bit_length()
    position = 0
    while width > 1:
        width //= 2
        low = bits & _below(width)
        members = low.bit_count()
        if n < members:
            bits = low
        else:
            n -= members
            bits >>= width
            position += width
    return position


@lru_cache(maxsize=32)
def _below(width: int) -> int:
    """Members 0 to ``width`` - 1."""
    return (1 << width) - 1


def ranges(bits: int) -> list[PortRange]:
    """The set as ascending ranges with gaps between them."""
    result = []
    position = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        position += skip
        length = (~bits & (bits + 1)).bit_length() - 1
        result.append(PortRange(position, position + length - 1))
        bits >>= length
        position += length
    return result
