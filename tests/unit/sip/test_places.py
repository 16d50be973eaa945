"""Which TCP connections the SIP server closes when most of its places are taken."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from dnat.sip.places import ALWAYS, BLOCK, CROWDED, PLACES, Connection, superfluous

SHARED = IPv4Address("198.51.100.1")


def of(address: str, number: int, first: int = 20480) -> list[Connection]:
    return [(5060 + n % 2, IPv4Address(address), first + n // 2) for n in range(number)]


def test_nobody_leaves_while_there_is_room() -> None:
    assert superfluous(of("203.0.113.2", CROWDED), SHARED) == []


def test_who_has_most_leaves_until_half_of_the_places_are_free() -> None:
    crowd, trunk, phones = of("203.0.113.2", 3700), of("203.0.113.9", 300), of(str(SHARED), 90)
    leaving = superfluous(crowd + trunk + phones, SHARED)
    assert Counter(peer for _, peer, _ in leaving) == {IPv4Address("203.0.113.2"): 4090 - CROWDED}


def test_a_host_of_the_site_with_thousands_of_ports_leaves_before_phones_with_few() -> None:
    crowd = of(str(SHARED), 3840, 4096)
    phones = [each for n in range(100) for each in of(str(SHARED), 2, 40000 + n * BLOCK)]
    leaving = superfluous(crowd + phones, SHARED)
    assert set(leaving) < set(crowd)
    assert len(crowd) + len(phones) - len(leaving) <= CROWDED


@given(st.lists(st.integers(1, 200), max_size=150))
def test_what_is_left(numbers: list[int]) -> None:
    """At most half of the places, but for what everybody keeps; and nobody leaves who has less than who stays."""
    taken = [each for n, number in enumerate(numbers) for each in of(str(IPv4Address(10 << 24 | n)), number)][:PLACES]
    leaving = superfluous(taken, SHARED)
    before, after = Counter(peer for _, peer, _ in taken), Counter(peer for _, peer, _ in set(taken) - set(leaving))
    lost = [peer for peer in before if before[peer] > after[peer]]
    assert bool(lost) == (len(taken) > CROWDED and max(before.values()) > ALWAYS)
    assert all(after[peer] == max(after.values()) >= ALWAYS for peer in lost)
    assert len(taken) - len(leaving) <= max(CROWDED, ALWAYS * len(before))
