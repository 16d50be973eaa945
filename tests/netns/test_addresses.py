"""Two external addresses in one pool with holes: who gets what of which, and that it works."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from nodes import OTHER_EXTERNAL, Lab, Node, operated_lab

from dnat.lab.topology import Topology

UDP = socket.SOCK_DGRAM
PHONES = ("phone1", "phone2", "phone3")
CONFIGURATION = f"""\
roles = ["server", "router"]

[server]
external_addresses = ["198.51.100.1", "{OTHER_EXTERNAL}"]
ports = ["10000-10399", "30000-30199"]
specific_ports = ["5000-5099", "8000-8001"]
excluded_ports = ["10100-10149", "5090-5095"]

[[server.reserved]]
ports = "5060-5061"
hosts = ["10.66.0.11"]

[[server.reserved]]
ports = "30100-30109"
hosts = ["10.66.0.12", "10.66.0.13"]

[router]
lan = "lan"
wan = "wan"
"""


@pytest.fixture(scope="module")
def lab(_root: None) -> Iterator[Lab]:
    with operated_lab(Topology(prefix=f"dt{os.getpid()}a", phones=3), CONFIGURATION, PHONES) as lab:
        yield lab


def address_of(node: Node) -> str:
    """The one external address of everything that a host has (RFC 4787, REQ-2: paired)."""
    (address,) = {each["address"] for each in node.show()["leases"]}
    return str(address)


def pair(lab: Lab) -> tuple[Node, Node]:
    """Two hosts on different addresses."""
    one = lab["phone1"]
    return one, next(lab[name] for name in PHONES[1:] if address_of(lab[name]) != address_of(one))


def test_hosts_are_spread_over_the_addresses(lab: Lab) -> None:
    assert sorted(Counter(address_of(lab[name]) for name in PHONES).values()) == [1, 2]


def test_what_a_host_has_is_of_one_address(lab: Lab) -> None:
    """By number, by count, translated, seen from outside: always the same."""
    for name in PHONES:
        phone = lab[name]
        extra = [phone.request("--ports", "3"), phone.request("--port", f"50{name[-1]}0")]
        phone.dnatctl("map", "tcp", "80")
        assert {each["address"] for each in extra} == {address_of(phone)}
        for local_port in ([], ["--local-port", "4321"]):
            said = phone.run("curl", "-sS", "-m", "5", *local_port, f"http://{lab.ext}/").stdout
            assert said.rpartition(":")[0] == address_of(phone)
        phone.dnatctl("unmap", "tcp", "80")
        phone.dnatctl("release", *(each["id"] for each in extra))


def test_a_host_stays_on_its_address(lab: Lab) -> None:
    """After a restart, and after it lost its memory, though the other address has more ports free."""
    for phone in pair(lab):
        before, leases = address_of(phone), phone.leases()
        phone.dnatctl("down")
        phone.dnatctl("up")
        assert address_of(phone) == before
        phone.kill()
        (phone.runtime / "leases.json").unlink()
        phone.dnatctl("up")
        assert address_of(phone) == before
        ports = [(each["first"], each["last"], each["purpose"]) for each in leases]
        assert [(each["first"], each["last"], each["purpose"]) for each in phone.leases()] == ports


def test_the_same_port_of_both_addresses(lab: Lab) -> None:
    """Two hosts have it, each on its address; the outside and the other host reach the right one."""
    one, two = pair(lab)
    with one.socket(UDP, 5010) as first, two.socket(UDP, 5010) as second:
        for node in (one, two):
            node.dnatctl("request", "--port", "5010")
        with lab["ext"].socket(UDP) as outside, lab["phone1"].socket(UDP) as inside:
            for node, server in ((one, first), (two, second)):
                for client in (outside, inside):
                    client.sendto(node.name.encode(), (address_of(node), 5010))
                    data, source = server.recvfrom(100)
                    assert data == node.name.encode()
                    server.sendto(b"back", source)
                    assert client.recvfrom(100) == (b"back", (address_of(node), 5010))
    for node in (one, two):
        node.dnatctl("release", "5010")


def test_a_port_that_is_taken_is_not_sought_on_the_other_address(lab: Lab) -> None:
    """A host has one address: what another has of it cannot be had."""
    same = Counter(address_of(lab[name]) for name in PHONES).most_common(1)[0][0]
    one, two = (lab[name] for name in PHONES if address_of(lab[name]) == same)
    one.dnatctl("request", "--port", "5020")
    assert "another host has" in two.dnatctl("request", "--port", "5020", code=3).stderr
    one.dnatctl("release", "5020")


def test_holes_and_excluded_ports_are_never_leased(lab: Lab) -> None:
    """A host takes all that it can get by number of ports, of either address."""
    for phone in pair(lab):
        taken = []
        while (done := phone.dnatctl("request", "--ports", "400", "-o", "json", code=None)).returncode == 0:
            taken.append(done.stdout)
        assert "pool" in done.stderr or "ports" in done.stderr
        leased = {port for each in phone.show()["leases"] for port in range(each["first"], each["last"] + 1)}
        allowed = {*range(10000, 10400), *range(30000, 30200)} - {*range(10100, 10150), *range(30100, 30110)}
        assert leased <= allowed
        assert len(leased) > 300
        for port in ("5090", "10120", "20000", "65000"):
            assert "does not give out" in phone.dnatctl("request", "--port", port, code=3).stderr
        phone.dnatctl("release", *(each["id"] for each in phone.show()["leases"] if each["purpose"] == "explicit"))


def test_reserved_ports_are_for_who_is_named(lab: Lab) -> None:
    for name, allowed, refused in (
        ("phone1", "5060-5061", "30100-30109"),
        ("phone2", "30100-30104", "5060"),
        ("phone3", "30105-30109", "5061"),
    ):
        phone = lab[name]
        assert "reserved for other hosts" in phone.dnatctl("request", "--port", refused, code=3).stderr
        assert phone.request("--port", allowed)["address"] == address_of(phone)
        phone.dnatctl("release", allowed)
