"""Living with others: containers, foreign firewall rules, link flaps, DHCP renewals, a changed WAN address."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from inside import ip, run
from nodes import Lab, Node, eventually

from dnat.lab import builder, control
from dnat.lab.topology import Topology
from dnat.system import netns

REPAIR_SECONDS = 40.0
"""The daemon looks every 10 seconds; the machine may be busy."""


@pytest.fixture
def own_phone(prefix: str) -> Iterator[Lab]:
    """A lab of its own with one phone, because these tests break things."""
    topology = Topology(prefix=prefix, phones=1)
    try:
        control.up(topology, lambda _: None)
        yield Lab(topology)
    finally:
        builder.destroy(prefix)


@pytest.fixture
def container(own_phone: Lab) -> Iterator[str]:
    """A container as Docker makes them: a bridge on the host, masquerading, rules in chains of Docker's own."""
    phone, name = own_phone["phone1"].namespace, f"{own_phone.topology.prefix}-container"
    netns.create(name)
    try:
        ip(phone, f"link add docker0 type bridge; link add veth0 type veth peer name eth0 netns {name}")
        ip(
            phone,
            "link set veth0 master docker0; addr add 172.17.0.1/16 dev docker0; link set docker0 up; link set veth0 up",
        )
        ip(name, "link set lo up; addr add 172.17.0.2/16 dev eth0; link set eth0 up; route add default via 172.17.0.1")
        run(phone, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        run(
            phone,
            "nft",
            "add table ip nat;"
            "add chain ip nat POSTROUTING { type nat hook postrouting priority 100; };"
            "add rule ip nat POSTROUTING ip saddr 172.17.0.0/16 oifname != docker0 masquerade;"
            "add table ip filter;"
            "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; };"
            "add rule ip filter FORWARD iifname docker0 accept;"
            "add rule ip filter FORWARD oifname docker0 ct state established,related accept",
        )
        yield name
    finally:
        netns.delete(name)


def _reaches(node: Node, lab: Lab) -> bool:
    return node.run("curl", "-sS", "-m", "2", f"http://{lab.ext}/", code=None).stdout.startswith(lab.external)


def test_containers_reach_the_outside_and_their_rules_stay(own_phone: Lab, container: str) -> None:
    phone = own_phone["phone1"].namespace
    before = run(phone, "nft", "-s", "list", "ruleset")
    # Docker masquerades into the host's LAN address, and the router masquerades that.
    said = run(container, "curl", "-sS", "-m", "5", f"http://{own_phone.ext}/")
    assert said.startswith("203.0.113.1:")
    assert len(run(container, "curl", "-sS", "-m", "20", f"http://{own_phone.ext}/bytes/2000000")) == 2_000_000
    run(container, "ping", "-c", "2", "-i", "0.2", "-W", "2", own_phone.ext)
    assert _reaches(own_phone["phone1"], own_phone)
    own_phone["phone1"].dnatctl("down")
    assert run(phone, "nft", "-s", "list", "ruleset") == before
    run(container, "curl", "-sS", "-m", "5", f"http://{own_phone.ext}/")


def test_a_flap_of_the_lan_link(own_phone: Lab) -> None:
    """The kernel forgets every route of a link that goes down; DHCP or the network manager puts the LAN's back."""
    phone = own_phone["phone1"]
    before = phone.ports("ephemeral")
    ip(phone.namespace, "link set eth0 down")
    ip(phone.namespace, "link set eth0 up; route replace default via 10.66.0.1")
    eventually(lambda: _reaches(phone, own_phone), "the phone speaks from the external address again", REPAIR_SECONDS)
    assert phone.ports("ephemeral") == before


def test_a_renewal_by_dhcp_that_replaces_the_default_route(own_phone: Lab) -> None:
    phone = own_phone["phone1"]
    ip(phone.namespace, "route del default")
    ip(phone.namespace, "addr replace 10.66.0.11/24 dev eth0 valid_lft 600 preferred_lft 600")
    ip(phone.namespace, "route replace default via 10.66.0.1 src 10.66.0.11 metric 100")
    eventually(lambda: _reaches(phone, own_phone), "the phone speaks from the external address again", REPAIR_SECONDS)


def test_a_flap_of_the_wan_link(own_phone: Lab) -> None:
    router, phone = own_phone["router"], own_phone["phone1"]
    ip(router.namespace, "link set wan down")
    ip(router.namespace, f"link set wan up; route replace default via {own_phone.ext}")
    eventually(lambda: _reaches(phone, own_phone), "the phone reaches the outside again", REPAIR_SECONDS)


def test_another_wan_address(own_phone: Lab) -> None:
    """The shared address stays; the router's own, by which devices without PAP are masqueraded, changes."""
    router, phone = own_phone["router"], own_phone["phone1"]
    ip(router.namespace, "addr del 203.0.113.1/24 dev wan; addr add 203.0.113.77/24 dev wan")
    ip(router.namespace, f"route replace default via {own_phone.ext}")
    ip(own_phone["ext"].namespace, f"route replace {own_phone.external} via 203.0.113.77")
    eventually(lambda: _reaches(phone, own_phone), "the phone reaches the outside again", REPAIR_SECONDS)
    device = own_phone["sip"]
    device.dnatctl("down")

    def masqueraded() -> bool:
        done = device.run("curl", "-sS", "-m", "2", f"http://{own_phone.ext}/", code=None)
        return str(done.stdout).startswith("203.0.113.77:")

    eventually(masqueraded, "a device without PAP is masqueraded by the new address", REPAIR_SECONDS)
