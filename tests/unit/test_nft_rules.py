"""The router's nftables rules as pure data; tests/netns/test_system_router.py shows what the kernel makes of
them.
"""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from typing import Any

import pytest

from dnat.errors import UsageError
from dnat.system import nft_json, router
from dnat.system.router_rules import SharedAddress, router_table
from dnat.types import PortRange

ROUTED = SharedAddress(IPv4Address("198.51.100.1"), own=False, ports=(PortRange(1024, 65535),))
OWN = SharedAddress(IPv4Address("203.0.113.1"), own=True, ports=(PortRange(5060, 5061), PortRange(16384, 49151)))
OWN_PORTS = PortRange(50000, 59999)
WAN_ADDRESSES = (IPv4Address("203.0.113.1"),)


def rules(objects: list[dict[str, Any]], chain: str) -> list[dict[str, Any]]:
    return [one["rule"] for one in objects if "rule" in one and one["rule"]["chain"] == chain]


def verdicts(objects: list[dict[str, Any]], chain: str) -> list[dict[str, Any]]:
    return [rule["expr"][-1] for rule in rules(objects, chain)]


def test_every_rule_is_in_a_chain_of_our_table() -> None:
    objects = router_table("lan", "wan", (ROUTED, OWN), WAN_ADDRESSES, OWN_PORTS)
    chains = {one["chain"]["name"] for one in objects if "chain" in one}
    for one in objects:
        (fields,) = one.values()
        assert (fields["family"], fields["table"]) == ("ip", "dnat-router")
        assert fields.get("chain", "input") in chains
    assert all(one["chain"]["policy"] == "accept" for one in objects if "chain" in one)


def test_a_routed_address_is_shared_whole() -> None:
    objects = router_table("lan", "wan", (ROUTED,), WAN_ADDRESSES, None)
    assert [len(rule["expr"]) for rule in rules(objects, "notrack-in")] == [2, 2]
    assert verdicts(objects, "masquerade-lan") == [{"masquerade": None}]


def test_the_routers_own_address_is_shared_only_in_the_leased_ports() -> None:
    objects = router_table("lan", "wan", (OWN,), WAN_ADDRESSES, OWN_PORTS)
    for chain in ("notrack-in", "notrack-out"):
        ports = [rule["expr"][2]["match"]["right"] for rule in rules(objects, chain)]
        assert ports == [{"set": [{"range": [5060, 5061]}, {"range": [16384, 49151]}]}] * 2
    into = {"range": [50000, 59999]}
    assert verdicts(objects, "masquerade-lan") == [
        {"snat": {"addr": "203.0.113.1", "port": into}},
        {"snat": {"addr": "203.0.113.1", "port": into}},
        {"masquerade": {"port": into}},
        {"masquerade": None},
    ]


def test_an_outside_that_is_itself_private_is_let_out() -> None:
    inner = SharedAddress(IPv4Address("192.168.1.7"), own=False, ports=(PortRange(1024, 65535),))
    objects = router_table("lan", "wan", (inner,), (IPv4Address("192.168.1.2"),), None)
    first = rules(objects, "leave")[0]
    assert first["expr"][1]["match"]["right"] == {"set": ["192.168.1.2", "192.168.1.7"]}
    assert verdicts(objects, "leave") == [{"accept": None}, {"drop": None}]
    assert verdicts(objects, "masquerade-lan") == [{"accept": None}, {"masquerade": None}]


def test_the_same_rules_listed_by_the_kernel_compare_equal() -> None:
    wanted = router_table("lan", "wan", (OWN,), WAN_ADDRESSES, OWN_PORTS)
    listed = json.loads(json.dumps(wanted))
    for handle, one in enumerate(listed):
        next(iter(one.values()))["handle"] = handle
    for rule in rules(listed, "input"):
        rule["expr"][0]["match"]["right"]["set"].reverse()
    listed = [{"metainfo": {}}, {"table": {"family": "ip", "name": "dnat-router", "handle": 9}}, *listed]
    assert nft_json.comparable(listed) == nft_json.comparable(wanted)

    del rules(listed, "leave")[-1]["expr"][-1]
    assert nft_json.comparable(listed) != nft_json.comparable(wanted)


def test_the_routers_ports_and_the_leased_ones_must_not_overlap() -> None:
    with pytest.raises(UsageError, match="ports of its own"):
        router._check_ports((OWN,), None)
    with pytest.raises(UsageError, match="overlap the ports 16384-49151"):
        router._check_ports((OWN,), PortRange(49151, 59999))
    router._check_ports((OWN, ROUTED), OWN_PORTS)
