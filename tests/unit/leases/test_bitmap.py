"""Sets of ports as integers, against sets of ports as sets."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from dnat.leases import bitmap
from dnat.leases.pool import BLOCK, AddressSpace, longest, pick
from dnat.types import Parity, PortRange, Protocol

members = st.sets(st.integers(1, 300))


def as_bits(ports: set[int]) -> int:
    return sum(1 << port for port in ports)


def as_set(bits: int) -> set[int]:
    return {port for port in range(bits.bit_length()) if bits >> port & 1}


def starts(ports: set[int], count: int) -> set[int]:
    return {each for each in ports if all(each + n in ports for n in range(count))}


@given(members, st.integers(1, 40))
def test_runs(ports: set[int], count: int) -> None:
    assert as_set(bitmap.runs(as_bits(ports), count)) == starts(ports, count)


@given(members, st.sampled_from([1, 2, 4, 16]))
def test_blocks(ports: set[int], size: int) -> None:
    whole = {each for each in starts(ports, size) if each % size == 0}
    assert as_set(bitmap.blocks(as_bits(ports), size)) == {each + n for each in whole for n in range(size)}


@given(st.sets(st.integers(0, 65535), min_size=1))
def test_nth(ports: set[int]) -> None:
    bits = as_bits(ports)
    assert [bitmap.nth(bits, n) for n in range(len(ports))] == sorted(ports)


@given(members)
def test_ranges(ports: set[int]) -> None:
    found = bitmap.ranges(as_bits(ports))
    assert {port for each in found for port in range(each.first, each.last + 1)} == ports
    assert all(one.last + 1 < two.first for one, two in itertools.pairwise(found))
    assert bitmap.union(found) == as_bits(ports)


@given(members, st.integers(1, 40), st.sampled_from(Parity), st.integers())
def test_pick_finds_a_place_if_there_is_one(ports: set[int], count: int, parity: Parity, seed: int) -> None:
    rest = {Parity.ANY: (0, 1), Parity.EVEN: (0,), Parity.ODD: (1,)}[parity]
    possible = {each for each in starts(ports, count) if each % 2 in rest}
    found = pick(as_bits(ports), count, parity, random.Random(seed).randrange)
    if found is None:
        assert not possible
    else:
        assert found.first in possible
        assert len(found) == count


@given(members, st.integers(1, 40), st.sampled_from(Parity))
def test_longest(ports: set[int], below: int, parity: Parity) -> None:
    rest = {Parity.ANY: (0, 1), Parity.EVEN: (0,), Parity.ODD: (1,)}[parity]
    lengths = [n for n in range(1, below) if any(each % 2 in rest for each in starts(ports, n))]
    assert longest(as_bits(ports), below, parity) == max(lengths, default=0)


def test_the_last_port_is_a_port() -> None:
    bits = bitmap.bits_of(PortRange(1024, 65535))
    assert pick(bits, 64512, Parity.ANY, lambda n: n - 1) == PortRange(1024, 65535)
    assert pick(bits, 64513, Parity.ANY, lambda n: n - 1) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("leased", "held")), st.integers(1, 65535), st.integers(1, 300), st.sampled_from(Protocol)
        ),
        max_size=12,
    ),
    st.sampled_from(Protocol),
)
def test_what_is_free_is_known_without_looking_at_it_all(
    changes: list[tuple[str, int, int, Protocol]], protocol: Protocol
) -> None:
    by_count = bitmap.bits_of(PortRange(10000, 59999))
    space = AddressSpace(by_count)
    assert space.free(protocol) == by_count
    for number, (which, first, length, other) in enumerate(changes):
        ports = PortRange(first, min(first + length, 65535))
        (space.vacate if number % 3 == 2 else space.occupy)(getattr(space, which), ports, other)
        free = by_count & ~space.occupied(protocol)
        assert space.free(protocol) == free
        assert space.room(protocol) == free.bit_count()
        whole = bitmap.runs(free, BLOCK) & bitmap.multiples(BLOCK)
        assert space.free_blocks(protocol) == sum(1 << each.first // BLOCK for each in bitmap.ranges(whole))
