"""The lab as data."""

from __future__ import annotations

import tomllib
from ipaddress import IPv4Address, IPv4Network

import pytest

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
