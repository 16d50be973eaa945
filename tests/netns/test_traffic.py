"""Real traffic through both data planes, whether the external address is routed to the router or its own."""

from __future__ import annotations

import socket
import sys
from functools import partial

import pytest
from nodes import SILENCE, Lab, Node

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
ECHO = 7


def _seen_from(node: Node, lab: Lab, local_port: int | None = None) -> tuple[str, int]:
    """The address and port that an HTTP server outside sees."""
    option = ["--local-port", str(local_port)] if local_port else []
    said = node.run("curl", "-sS", "-m", "5", *option, f"http://{lab.ext}/").stdout
    address, port = said.strip().rsplit(":", 1)
    return address, int(port)


def test_a_connection_leaves_from_a_leased_port_untouched(lab: Lab) -> None:
    phone = lab["phone1"]
    before = phone.counter("host_out_translated")
    address, port = _seen_from(phone, lab)
    assert address == lab.external
    assert port in phone.ports("ephemeral")
    assert phone.counter("host_out_translated") == before


def test_a_connection_from_another_port_is_translated(lab: Lab) -> None:
    phone = lab["phone1"]
    address, port = _seen_from(phone, lab, local_port=4001)
    assert address == lab.external
    assert port in phone.ports("translated")
    (binding,) = (b for b in phone.show()["bindings"] if b["protocol"] == "tcp" and b["local_port"] == 4001)
    assert (binding["address"], binding["port"]) == (lab.external, port)


@pytest.mark.parametrize("local_port", [0, 4002, 4003])
def test_datagrams_come_back(lab: Lab, local_port: int) -> None:
    with lab["phone1"].socket(UDP, local_port) as sock:
        for size in (1, 160, 1472):
            sock.sendto(b"x" * size, (lab.ext, ECHO))
            assert sock.recvfrom(2000) == (b"x" * size, (lab.ext, ECHO))


def test_parity_is_kept_by_translation(lab: Lab) -> None:
    """RFC 4787, REQ-4 and RFC 3550: an even local port becomes an even unique one."""
    phone = lab["phone2"]
    for local_port in (4100, 4101, 4102, 4103):
        with phone.socket(UDP, local_port) as sock:
            sock.sendto(b"?", (lab.ext, ECHO))
            sock.recv(10)
    ports = {b["local_port"]: b["port"] for b in phone.show()["bindings"] if b["protocol"] == "udp"}
    assert all(ports[local_port] % 2 == local_port % 2 for local_port in (4100, 4101, 4102, 4103))


def test_large_transfers_both_native_and_translated(lab: Lab) -> None:
    phone = lab["phone1"]
    for option in ([], ["--local-port", "4004"]):
        done = phone.run("curl", "-sS", "-m", "20", *option, f"http://{lab.ext}/bytes/5000000", text=False)
        assert len(done.stdout) == 5_000_000


def test_ping_from_every_host_at_once(lab: Lab) -> None:
    """Echo identifiers are ports, too: the answers find their way back although all share one address."""
    for phone in ("phone1", "phone2", "sip"):
        done = lab[phone].run("ping", "-c", "3", "-i", "0.1", "-W", "15", lab.ext)
        assert "3 received" in done.stdout


def test_an_outsider_reaches_a_leased_port_unasked(lab: Lab) -> None:
    phone, ext = lab["phone1"], lab["ext"]
    port = phone.request("--ports", "2")["first"]
    with phone.socket(UDP, port) as server, ext.socket(UDP) as client:
        client.sendto(b"hello", (lab.external, port))
        data, source = server.recvfrom(100)
        assert (data, source[0]) == (b"hello", lab.ext)
        server.sendto(b"well", source)
        assert client.recvfrom(100) == (b"well", (lab.external, port))
    with phone.socket(TCP, port + 1, listen=True) as server, ext.socket(TCP) as client:
        client.connect((lab.external, port + 1))
        accepted, source = server.accept()
        with accepted:
            assert source[0] == lab.ext
            accepted.sendall(b"well")
            assert client.recv(10) == b"well"
    phone.dnatctl("release", str(port))


def test_hairpin_between_hosts_that_share_the_address(lab: Lab) -> None:
    """RFC 4787, REQ-9: and each sees the other's combination network address."""
    one, two = lab["phone1"], lab["phone2"]
    port = two.request("--ports", "2")["first"]
    for local_port, purpose in ((0, "ephemeral"), (4005, "translated")):
        with two.socket(UDP, port) as server, one.socket(UDP, local_port) as client:
            client.sendto(b"hello", (lab.external, port))
            data, source = server.recvfrom(100)
            assert data == b"hello"
            assert source[0] == lab.external and source[1] in one.ports(purpose)
            server.sendto(b"well", source)
            assert client.recvfrom(100) == (b"well", (lab.external, port))
        with two.socket(TCP, port + 1, listen=True) as server, one.socket(TCP, local_port) as client:
            client.connect((lab.external, port + 1))
            accepted, source = server.accept()
            with accepted:
                assert source[0] == lab.external and source[1] in one.ports(purpose)
                client.sendall(b"x" * 300_000)
                client.shutdown(socket.SHUT_WR)
                assert sum(map(len, iter(partial(accepted.recv, 65536), b""))) == 300_000
    two.dnatctl("release", str(port))


def test_a_host_reaches_itself_at_the_shared_address(lab: Lab) -> None:
    phone = lab["phone1"]
    port = phone.request("--ports", "1")["first"]
    with phone.socket(TCP, port, listen=True) as server, phone.socket(TCP) as client:
        client.connect((lab.external, port))
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"me")
            assert client.recv(10) == b"me"
    phone.dnatctl("release", str(port))


def test_a_port_that_nobody_owns_gets_nothing(lab: Lab) -> None:
    router = lab["router"]
    counter = "router_to_self" if lab.topology.own_address else "drop_no_owner"
    before = router.counter(counter)
    with lab["ext"].socket(UDP) as sock:
        sock.settimeout(SILENCE)
        sock.connect((lab.external, 9))
        sock.send(b"anyone?")
        with pytest.raises((TimeoutError, ConnectionRefusedError)):
            sock.recv(10)
    assert router.counter(counter) == before + 1


def test_a_port_of_another_host_cannot_be_used(lab: Lab) -> None:
    """The router lets a source port through only from its owner."""
    thief, victim, router = lab["phone2"], lab["phone1"], lab["router"]
    port = victim.ports("ephemeral").first
    before = router.counter("drop_not_owner")
    with lab["ext"].socket(UDP, 4999) as sock:
        sock.settimeout(SILENCE)
        forge = (
            "from scapy.all import *;"
            f"sendp(Ether(dst=getmacbyip('10.66.0.1'))/IP(src='{lab.external}',dst='{lab.ext}')"
            f"/UDP(sport={port},dport=4999)/b'forged', iface='eth0', verbose=0)"
        )
        # An attacker's machine has no data plane of ours.
        thief.dnatctl("down")
        thief.run(sys.executable, "-c", forge)
        with pytest.raises(TimeoutError):
            sock.recv(100)
    assert router.counter("drop_not_owner") == before + 1
    thief.dnatctl("up")


def test_lan_traffic_is_none_of_our_business(lab: Lab) -> None:
    one, two = lab["phone1"], lab["phone2"]
    with two.socket(UDP, 9999) as server, one.socket(UDP, 9999) as client:
        client.sendto(b"neighbour", (two.address, 9999))
        assert server.recvfrom(100) == (b"neighbour", (one.address, 9999))
    one.run("ping", "-c", "1", "-W", "15", two.address)


def test_a_lan_device_without_pap_is_masqueraded(lab: Lab) -> None:
    device = lab["sip"]
    device.dnatctl("down")
    try:
        address, port = _seen_from(device, lab)
        assert address == "203.0.113.1"
        if lab.topology.own_address:
            assert 60000 <= port <= 65535, "kept out of the ports that hosts lease"
    finally:
        device.dnatctl("up")


def test_the_router_itself_talks_to_the_outside_and_to_hosts(lab: Lab) -> None:
    router, phone = lab["router"], lab["phone1"]
    address, port = _seen_from(router, lab)
    assert address == "203.0.113.1"
    if lab.topology.own_address:
        assert 60000 <= port <= 65535
        leased = phone.request("--ports", "1")["first"]
        with phone.socket(UDP, leased) as server, router.socket(UDP) as client:
            client.sendto(b"from the router", (lab.external, leased))
            data, source = server.recvfrom(100)
            assert data == b"from the router"
            server.sendto(b"well", source)
            assert client.recvfrom(100) == (b"well", (lab.external, leased))
        phone.dnatctl("release", str(leased))
    router.run("ping", "-c", "1", "-W", "15", phone.address)
