"""Which local ports containers get, and the rules that give them; tests/netns/test_guests.py has them work."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dnat.daemon.guests import UNPRIVILEGED, choose
from dnat.system.guests import Translation, guest_table
from dnat.system.nft_json import comparable
from dnat.types import PortRange, Protocol

SPANS = st.tuples(st.integers(1, 65535), st.integers(0, 20000)).map(
    lambda pair: PortRange(pair[0], min(pair[0] + pair[1], 65535))
)


def test_the_highest_ports_that_have_room() -> None:
    assert choose([], 512) == PortRange(65024, 65535)
    assert choose([PortRange(20000, 20063)], 512) == PortRange(65024, 65535)
    assert choose([PortRange(65100, 65101)], 512) == PortRange(64588, 65099)
    assert choose([PortRange(1024, 60000), PortRange(60100, 65535)], 512) == PortRange(60001, 60099)
    assert choose([UNPRIVILEGED], 512) is None


@given(st.lists(SPANS, max_size=12), st.integers(1, 2048))
def test_what_is_chosen_is_free_and_as_large_as_can_be(taken: list[PortRange], size: int) -> None:
    chosen = choose(taken, size)
    ends = {port for each in taken for port in (each.first, each.last)}
    edges = sorted({UNPRIVILEGED.first - 1, UNPRIVILEGED.last + 1, *(port for port in ends if port in UNPRIVILEGED)})
    gaps = [(before, after) for before, after in pairwise(edges) if not any(before + 1 in each for each in taken)]
    free = [after - before - 1 for before, after in gaps]
    if chosen is None:
        assert not any(free)
        return
    assert not any(chosen.overlaps(each) for each in taken)
    assert chosen.first >= UNPRIVILEGED.first
    assert len(chosen) == min(size, max(free))


def _rules(objects: list[dict[str, Any]], chain: str) -> list[dict[str, Any]]:
    return [one["rule"] for one in objects if "rule" in one and one["rule"]["chain"] == chain]


def test_the_rules() -> None:
    native = {Protocol.TCP: [PortRange(20000, 20063), PortRange(5060, 5060)]}
    translation = Translation("eth0", IPv4Address("198.51.100.1"), PortRange(65024, 65535), native)
    objects = guest_table(translation, [IPv4Network("10.66.0.0/24"), IPv4Network("10.9.9.9/32")])
    guests, *_ = (one["chain"] for one in objects if "chain" in one)
    assert (guests["type"], guests["hook"], guests["prio"]) == ("nat", "postrouting", 99)
    *spared, too_often, too_many, translated = _rules(objects, "guests")
    (often,), (many,) = (each["expr"][-2]["set"]["stmt"] for each in (too_often, too_many))
    assert (often["limit"], many["ct count"]) == (
        {"rate": 64, "burst": 128, "per": "minute", "inv": True},
        {"val": 192, "inv": True},
    )
    assert [rule["expr"][1]["match"]["right"] for rule in spared] == [
        {"prefix": {"addr": "10.66.0.0", "len": 24}},
        "10.9.9.9",
    ]
    assert all(rule["expr"][-1] == {"accept": None} for rule in spared)
    assert translated["expr"][-1] == {"snat": {"addr": "198.51.100.1", "port": {"range": [65024, 65535]}}}
    listed = json.loads(json.dumps(objects).replace('["saddr"]', '"saddr"'))
    assert listed != objects and comparable(listed) == comparable(objects), "as later versions of nft list it"
    (guard,) = _rules(objects, "answers")
    assert guard["expr"][-1] == {"drop": None}
    (hairpin,) = _rules(objects, "to-hosts")
    assert hairpin["expr"][3]["match"]["right"] == {"set": [{"range": [20000, 20063]}, 5060]}
    assert hairpin["expr"][-1] == {"dnat": {"addr": "192.0.0.8"}}
