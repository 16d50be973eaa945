"""``request`` and ``release``: extra and particular ports, used by real programs at once."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from nodes import SECONDS, SILENCE, Lab, Node

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM

# Particular ports are below 10000: the server gives out those above by number, and any host may have got them.


@pytest.fixture
def phone(routed_lab: Lab) -> Iterator[Node]:
    """A phone whose extra ports are given back after the test."""
    phone = routed_lab["phone1"]
    yield phone
    if extra := [lease["id"] for lease in phone.show()["leases"] if lease["purpose"] == "explicit"]:
        phone.dnatctl("release", *extra)


def _arrives(lab: Lab, node: Node, port: int, patience: float = SECONDS) -> bool:
    """Whether a datagram from the outside to a combination network address comes to a program of this node."""
    with node.socket(UDP, port) as server, lab["ext"].socket(UDP) as client:
        server.settimeout(patience)
        client.sendto(b"hello", (lab.external, port))
        try:
            return server.recv(100) == b"hello"
        except TimeoutError:
            return False


@pytest.mark.parametrize(
    ("options", "count", "parity"),
    [
        ((), 1, None),
        (("--ports", "10"), 10, None),
        (("--ports", "2", "--parity", "even"), 2, 0),
        (("--ports", "2", "--parity", "odd"), 2, 1),
        (("--ports", "700", "--exact"), 700, None),
    ],
)
def test_ports_by_number(
    routed_lab: Lab, phone: Node, options: tuple[str, ...], count: int, parity: int | None
) -> None:
    before = phone.leases()
    said = phone.dnatctl("request", *options).stdout
    (lease,) = (lease for lease in phone.leases() if lease not in before)
    assert lease["last"] - lease["first"] + 1 == count
    assert parity is None or lease["first"] % 2 == parity
    ports = str(lease["first"]) if count == 1 else f"{lease['first']}-{lease['last']}"
    assert f"{routed_lab.external}:{ports} " in said
    assert _arrives(routed_lab, phone, lease["first"])
    assert _arrives(routed_lab, phone, lease["last"])


def test_particular_ports(routed_lab: Lab, phone: Node) -> None:
    """A SIP server's well-known port, and a range: bound by programs as soon as the command has ended."""
    assert phone.request("--port", "5060", "--protocol", "udp")["first"] == 5060
    assert _arrives(routed_lab, phone, 5060)
    media = phone.request("--port", "3000-3009", "--lifetime", "600")
    assert (media["first"], media["last"]) == (3000, 3009)
    assert 590 <= media["expires_in"] <= 600
    assert all(_arrives(routed_lab, phone, port) for port in (3000, 3005, 3009))


def test_a_port_is_leased_for_its_protocol_alone(routed_lab: Lab, phone: Node) -> None:
    """Another host may have the same number of another protocol; each gets its own packets."""
    other, ext = routed_lab["phone2"], routed_lab["ext"]
    phone.request("--port", "5070", "--protocol", "udp")
    other.request("--port", "5070", "--protocol", "tcp")
    assert _arrives(routed_lab, phone, 5070)
    with other.socket(TCP, 5070, listen=True) as server, ext.socket(TCP) as client:
        client.connect((routed_lab.external, 5070))
        server.accept()[0].close()
    other.dnatctl("release", "5070")


def test_a_released_port_no_longer_receives(routed_lab: Lab, phone: Node) -> None:
    for port, name in ((2100, "2100"), (2200, "2200-2201"), (2300, "")):
        lease = phone.request("--port", f"{port}-{port + 1}")
        assert _arrives(routed_lab, phone, port)
        said = phone.dnatctl("release", name or lease["id"]).stdout
        assert f"released {routed_lab.external}:{port}-{port + 1} " in said
        assert not _arrives(routed_lab, phone, port, SILENCE)


def test_several_leases_are_released_together(phone: Node) -> None:
    one, two = phone.request("--ports", "4"), phone.request("--ports", "2")
    # Two ports of one lease are one lease.
    names = (str(one["first"]), str(one["last"]), two["id"])
    released = json.loads(phone.dnatctl("release", "-o", "json", *names).stdout)["released"]
    assert sorted(lease["id"] for lease in released) == sorted((one["id"], two["id"]))


def test_a_port_of_another_host_is_refused(routed_lab: Lab, phone: Node) -> None:
    other = routed_lab["phone2"]
    other.request("--port", "5080")
    for asked in ("5080", "5079-5081"):
        refused = phone.dnatctl("request", "--port", asked, code=3)
        assert len(refused.stderr.splitlines()) == 1
        assert "refused" in refused.stderr
        assert "another host has" in refused.stderr
    other.dnatctl("release", "5080")
    refused = phone.dnatctl("request", "--port", "5080", code=3)
    assert "try again in" in refused.stderr, "a port that was freed is kept back for a while (RFC 6888, REQ-8)"
    assert other.request("--port", "5080")["first"] == 5080, "but not from the host that had it"
    other.dnatctl("release", "5080")


def test_fewer_than_asked(phone: Node) -> None:
    """A host has 2,048 ports at most (docs/pap.md, section 8): it gets what is left, unless it wants all or nothing."""
    refused = phone.dnatctl("request", "--ports", "2100", "--exact", code=3)
    assert "dnatctl release" in refused.stderr
    said = phone.dnatctl("request", "--ports", "2100").stdout
    (lease,) = (lease for lease in phone.show()["leases"] if lease["purpose"] == "explicit")
    count = lease["last"] - lease["first"] + 1
    assert count == 2048 - 64 - 32
    assert "2100 were asked for" in said
    refused = phone.dnatctl("request", code=3)
    assert "dnatctl release" in refused.stderr


def test_ports_outside_of_the_pool(phone: Node) -> None:
    refused = phone.dnatctl("request", "--port", "65000", code=3)
    assert "server.specific_ports" in refused.stderr


WRONG = {
    "no port": (("request", "--port", "http"), "neither a port nor a range"),
    "backwards": (("request", "--port", "5061-5060"), "neither a port nor a range"),
    "beyond": (("request", "--port", "70000"), "neither a port nor a range"),
    "number and names": (("request", "--ports", "2", "--port", "5060"), "use one of them"),
    "no number": (("request", "--ports", "0"), "1<=x<=65535"),
    "unknown protocol": (("request", "--protocol", "sctp"), "'udp'"),
    "lifetime": (("request", "--lifetime", "-1"), "0<=x<=86400"),
    "parity of a particular port": (("request", "--port", "5061", "--parity", "even"), "not even"),
    "release nothing": (("release",), "LEASE"),
    "release no port": (("release", "http"), "neither a port nor a range"),
    "release no identifier": (("release", "not-hexadecimal!"), "neither a port nor a range"),
    "release what is not leased": (("release", "2345"), "dnatctl show leases"),
    "release an unknown lease": (("release", "0123456789abcdef"), "dnatctl show leases"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_say_what_is_right(phone: Node, case: str) -> None:
    argv, advice = WRONG[case]
    leases = phone.leases()
    refused = phone.dnatctl(*argv, code=2)
    assert advice in refused.stderr
    assert "Traceback" not in refused.stderr and "internal error" not in refused.stderr
    assert phone.leases() == leases


def test_the_hosts_own_ports_stay(phone: Node) -> None:
    refused = phone.dnatctl("release", str(phone.ports("ephemeral").first), code=2)
    assert "ephemeral" in refused.stderr and "dnatctl down" in refused.stderr


def test_a_router_leases_no_ports(routed_lab: Lab) -> None:
    refused = routed_lab["router"].dnatctl("request", code=2)
    assert '"host"' in refused.stderr
