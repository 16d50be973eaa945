"""The lab as data."""

from __future__ import annotations

import tomllib
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from dnat.config import parse
from dnat.errors import UsageError
from dnat.lab.topology import Topology, belongs


def test_the_lab_that_the_documentation_draws() -> None:
    lab = Topology()
    addresses = {(node.name, port.name): str(port.address) for node in lab.nodes for port in node.ports}
    assert addresses == {
        ("router", "lan"): "10.66.0.1/24",
        ("router", "wan"): "203.0.113.1/24",
        ("ext", "eth0"): "203.0.113.2/24",
        ("phone1", "eth0"): "10.66.0.11/24",
        ("phone2", "eth0"): "10.66.0.12/24",
        ("sip", "eth0"): "10.66.0.20/24",
    }
    assert lab.external == IPv4Address("198.51.100.1")
    assert lab.namespace("phone1") == "dnat-phone1"
    assert lab.nodes[0].name == "router"
    assert {node.name for node in lab.nodes if not node.roles} == {"ext"}


def test_the_external_address_is_routed_to_the_router_or_its_own() -> None:
    routed, own = Topology(), Topology(own_address=True)
    assert routed.node("ext").routes == ((IPv4Network("198.51.100.1/32"), IPv4Address("203.0.113.1")),)
    assert own.node("ext").routes == ()
    assert own.external == IPv4Address("203.0.113.1")
    for lab in (routed, own):
        assert lab.node("router").configuration is not None
        written = tomllib.loads(lab.node("router").configuration or "")
        assert written == {
            "roles": ["server", "router"],
            "server": {"external_addresses": [str(lab.external)], "authentication": "open"},
            "router": {"lan": "lan", "wan": "wan"},
        }
        assert lab.node("phone1").configuration is None


def test_routers_and_servers_on_machines_of_their_own() -> None:
    lab = Topology(phones=3, routers=2, servers=2)
    addresses = {node.name: str(node.address) for node in lab.nodes}
    assert addresses == {
        "etcd1": "10.66.0.7",
        "etcd2": "10.66.0.8",
        "etcd3": "10.66.0.9",
        "server": "10.66.0.5",
        "server2": "10.66.0.6",
        "router": "10.66.0.1",
        "router2": "10.66.0.2",
        "ext": "203.0.113.2",
        "phone1": "10.66.0.11",
        "phone2": "10.66.0.12",
        "phone3": "10.66.0.13",
        "sip": "10.66.0.20",
    }
    wan = {node.name: str(port.address.ip) for node in lab.nodes for port in node.ports if port.segment == "wan"}
    assert wan == {"router": "203.0.113.1", "router2": "203.0.113.3", "ext": "203.0.113.2"}
    assert [str(gateway) for _, gateway in lab.node("ext").routes] == ["203.0.113.1", "203.0.113.3"]
    gateways = {name: str(lab.node(name).routes[0][1]) for name in ("phone1", "phone2", "phone3")}
    assert gateways == {"phone1": "10.66.0.1", "phone2": "10.66.0.2", "phone3": "10.66.0.1"}
    endpoints = [f"10.66.0.{n}:2379" for n in (7, 8, 9)]
    for node in lab.nodes:
        assert belongs(lab.namespace(node.name), "dnat")
        if node.configuration is not None:
            config = parse(tomllib.loads(node.configuration), node.name)
            assert tuple(config.roles) == node.roles
            if node.roles == ("host",):
                assert config.host.servers == ("10.66.0.5", "10.66.0.6")
            else:
                assert (config.store.kind, config.store.endpoints) == ("etcd", endpoints)


@pytest.mark.parametrize(
    "shape", [{"routers": 2}, {"routers": 5, "servers": 1}, {"servers": 3}, {"servers": 1, "own_address": True}]
)
def test_impossible_shapes(shape: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Topology(**shape)


@pytest.mark.parametrize("phones", [1, 9, 10, 100])
def test_every_node_has_an_address_of_its_own(phones: int) -> None:
    lab = Topology(phones=phones)
    addresses = [port.address for node in lab.nodes for port in node.ports]
    assert len(set(addresses)) == len(addresses) == phones + 4
    assert len({node.name for node in lab.nodes}) == phones + 3
    assert all(len(port.name) < 16 and len(node.name) < 16 for node in lab.nodes for port in node.ports)
    if phones > 9:
        assert str(lab.node("phone10").address) == "10.66.0.21"


@pytest.mark.parametrize("phones", [0, -1, 101])
def test_impossible_numbers_of_phones(phones: int) -> None:
    with pytest.raises(UsageError, match="1 to 100"):
        Topology(phones=phones)


@pytest.mark.parametrize("prefix", ["", "-x", "a/b", "../x", "Lab", "a b", "x" * 33, "a.b"])
def test_impossible_names(prefix: str) -> None:
    with pytest.raises(UsageError, match="cannot be called"):
        Topology(prefix=prefix)


def test_unknown_nodes_are_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no node called phone3.*router, ext, phone1, phone2, sip"):
        Topology().node("phone3")


def test_only_its_own_namespaces_belong_to_a_lab() -> None:
    for name in ("dnat-router", "dnat-phone100", "dnat-switch", "dnat-sip", "dnat-ext"):
        assert belongs(name, "dnat")
    for name in (
        "dnat-x-router",
        "dnat-vpn",
        "dnat-phone",
        "dnatrouter",
        "other-router",
        "dnat-phone1x",
        "dnat",
    ):
        assert not belongs(name, "dnat")
