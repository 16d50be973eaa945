"""RFC 6888: common requirements for carrier-grade NATs."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import re
import socket
from pathlib import Path

import pytest
import raw
import wire
from nodes import SILENCE, Lab, Node, eventually
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw
from wire import DATAGRAM, bound, hears, local_port, outsiders, seen, servers, stream

from dnat.dataplane.router import RouterPlane
from dnat.instance import Instance
from dnat.system import netns
from dnat.types import Protocol

DCCP = 33
HOSTS = ("phone1", "phone2", "sip")


def test_req_1(lab: Lab, phone: Node) -> None:
    """UDP, TCP, ICMP, as the other tests show at length; DCCP (RFC 5597) from a leased port."""
    local = local_port()
    with phone.socket(DATAGRAM, local) as inside, outsiders(lab) as (one, *_), servers(lab) as (server, *_):
        assert hears(inside, one, seen(inside, one))
        with stream(phone, local, server) as (connected, accepted):
            accepted.sendall(b"x")
            assert connected.recv(10) == b"x"
    wire.echo_through(phone, lab, wire.identifier())
    request = bytes(8) + b"\x01\x00\x00\x00" + bytes(8)
    with wire.leased(phone) as port, wire.frames(lab["ext"]) as arriving:
        with wire.counted(phone, "drop_not_translatable"):
            for source in (port, local):
                packet = IP(src=lab.external, dst=lab.ext, proto=DCCP) / Raw(source.to_bytes(2) + b"\x13\x89" + request)
                raw.send(phone, [packet])
        found = wire.drain(arriving, lambda packet: packet.proto == DCCP)
    assert [bytes(packet.payload)[:2] for packet in found] == [port.to_bytes(2)]


def _address(phone: Node) -> str:
    (address,) = {lease["address"] for lease in phone.call("show")["leases"]}
    return str(address)


def test_req_2(pool_lab: Lab) -> None:
    """Two addresses; whatever a host does, it is seen with one of them, always the same."""
    for name in HOSTS:
        phone = pool_lab[name]
        mine = _address(phone)
        with outsiders(pool_lab) as outside, servers(pool_lab) as (server, *_):
            for local in (0, local_port()):
                with phone.socket(DATAGRAM, local) as inside:
                    assert {seen(inside, one)[0] for one in outside} == {mine}
                with stream(phone, local, server) as (_, accepted):
                    assert accepted.getpeername()[0] == mine


def test_req_3(pool_lab: Lab) -> None:
    """Addresses of two networks are in use at once, and hosts behind different ones talk to each other."""
    by_address = {_address(pool_lab[name]): pool_lab[name] for name in HOSTS}
    assert set(by_address) == {"198.51.100.1", "198.51.100.77"}
    one, two = by_address.values()
    with outsiders(pool_lab) as (outside, *_):
        for local in (0, local_port()):
            with one.socket(DATAGRAM, local) as first, two.socket(DATAGRAM, local) as second:
                mine, theirs = seen(first, outside), seen(second, outside)
                first.sendto(b"hello", theirs)
                assert second.recvfrom(10) == (b"hello", mine)
                second.sendto(b"well", mine)
                assert first.recvfrom(10) == (b"well", theirs)


def test_req_4(lab: Lab, phone: Node) -> None:
    """2,048 ports, and no more; others still get theirs."""
    taken = []
    try:
        while len(taken) < 40:
            done = phone.dnatctl("request", "--ports", "512", "-o", "json", code=None)
            if done.returncode:
                break
            taken.append(json.loads(done.stdout)["lease"])
        held = phone.call("show")["leases"]
        assert sum(lease["last"] - lease["first"] + 1 for lease in held) <= 2048
        assert done.returncode != 0 and "2048 ports per host" in done.stderr
        with wire.leased(lab["phone2"]) as port:
            assert port
    finally:
        for lease in taken:
            phone.dnatctl("release", lease["id"])


def test_req_4a(lab: Lab, few_ports: list[socket.socket]) -> None:
    """The host is configured to have four ports for translations, and gets no more however many it could use."""
    phone = lab["phone4"]
    for _ in range(3):
        with phone.socket(DATAGRAM, local_port()) as inside:
            inside.sendto(b"?", (lab.ext, wire.ECHO))
    assert len(wire.own_ports(phone, "translated")) == len(few_ports) == 4


@pytest.mark.usefixtures("few_ports")
def test_req_5(lab: Lab, phone: Node) -> None:
    """A hundred local ports make no more bindings than the host has ports; the router's tables do not grow at all."""
    scarce = lab["phone4"]
    with contextlib.closing(RouterPlane.open(Instance(lab["router"].namespace).pins("router"))) as plane:

        def entries() -> dict[str, int]:
            return {name: len(list(plane._maps[name].keys())) for name in ("addresses", "fragments", "waiting")}

        before = entries()
        for node in (scarce, phone):
            for _ in range(100):
                with node.socket(DATAGRAM, local_port()) as inside:
                    inside.sendto(b"?", (lab.ext, wire.ECHO))
        assert entries() == before
    bindings = [one for one in scarce.call("show")["bindings"] if one["protocol"] == "udp"]
    assert len(bindings) == 4


def test_req_6(lab: Lab, phone: Node) -> None:
    """A route with the LAN address as its source: what goes there is not translated, whatever port it comes from."""
    device, local = lab["sip"], local_port()
    device.run("ip", "addr", "add", "192.0.2.77/32", "dev", "lo")
    phone.run("ip", "route", "add", "192.0.2.77", "via", device.address, "src", phone.address)
    try:
        with device.socket(DATAGRAM, 5555) as receiver, phone.socket(DATAGRAM, local) as inside:
            inside.sendto(b"plain", ("192.0.2.77", 5555))
            assert receiver.recvfrom(10) == (b"plain", (phone.address, local))
            assert wire.binding(phone, Protocol.UDP, local) is None
            inside.sendto(b"?", (lab.ext, wire.ECHO))
            assert inside.recv(10) == b"?"
            assert bound(phone, Protocol.UDP, local).port != local
    finally:
        phone.run("ip", "route", "del", "192.0.2.77")
        device.run("ip", "addr", "del", "192.0.2.77/32", "dev", "lo")


def test_req_7(lab: Lab, phone: Node) -> None:
    with phone.socket(DATAGRAM, local_port()) as inside, outsiders(lab) as (one, *others):
        endpoint = seen(inside, one)
        assert all(hears(inside, stranger, endpoint) for stranger in others)


def _pair(pool_lab: Lab) -> tuple[Node, Node]:
    """Two hosts behind the same one of the two addresses."""
    nodes = [pool_lab[name] for name in HOSTS]
    return next((one, two) for one, two in itertools.combinations(nodes, 2) if _address(one) == _address(two))


def test_req_8(pool_lab: Lab, phone: Node, other: Node) -> None:
    """The port just freed is refused to another host, for 120 seconds. That it is given afterwards shows where the hold
    is configured to be of two.
    """
    for (had, wants), seconds in (((phone, other), 120), (_pair(pool_lab), 2)):
        with wire.leased(had) as port:
            pass
        asked = wants.dnatctl("request", "--port", str(port), code=None)
        assert asked.returncode != 0 and "on hold" in asked.stderr
        left = re.search(r"try again in ([0-9]+) s", asked.stderr)
        assert left is not None and seconds - 10 <= int(left[1]) <= seconds

    def gets_it() -> bool:
        return wants.dnatctl("request", "--port", str(port), code=None).returncode == 0

    eventually(gets_it, "it is free", seconds=10)
    wants.dnatctl("release", str(port))


def test_req_8b(lab: Lab, phone: Node) -> None:
    """The host that had the port gets it back at once."""
    with wire.leased(phone) as port:
        pass
    with wire.leased(phone, "--port", str(port)) as again:
        assert again == port


def test_req_9(lab: Lab, phone: Node) -> None:
    """Ask for ports, by number too; map one to another; list, end. Each step shows on the wire."""
    with wire.leased(phone, "--port", "5066"), outsiders(lab) as (one, *_):
        with phone.socket(DATAGRAM, 5066) as inside:
            assert hears(inside, one, (lab.external, 5066))
        phone.dnatctl("map", "udp", "6000", "--port", "5066")
        with phone.socket(DATAGRAM, 6000) as inside:
            assert hears(inside, one, (lab.external, 5066))
        phone.dnatctl("unmap", "udp", "6000")
        assert 5066 in wire.own_ports(phone, "explicit")
    assert 5066 not in wire.own_ports(phone, "explicit")
    with wire.counted(lab["router"], "drop_no_owner"), outsiders(lab) as (one, *_):
        one.sendto(b"?", (lab.external, 5066))


def test_req_10(lab: Lab, phone: Node) -> None:
    """What the programs do can be seen from outside of them."""
    local = local_port()
    before = wire.counter(phone, "host_out_translated")
    with phone.socket(DATAGRAM, local) as inside, outsiders(lab) as (one, *_):
        endpoint = seen(inside, one)
    shown = json.loads(phone.dnatctl("show", "-o", "json").stdout)
    (row,) = (row for row in shown["bindings"] if row["local_port"] == local)
    assert (row["address"], row["port"]) == endpoint
    assert shown["counters"]["host_out_translated"] == before + 1
    served = json.loads(lab["router"].dnatctl("show", "-o", "json").stdout)
    assert {lease["id"] for lease in shown["leases"]} <= {lease["id"] for lease in served["leases"]}


@pytest.mark.usefixtures("few_ports")
def test_req_11a(lab: Lab) -> None:
    with lab["phone4"].socket(DATAGRAM, local_port()) as inside, outsiders(lab) as (one, *_):
        with wire.counted(lab["phone4"], "drop_pool_exhausted"):
            inside.sendto(b"?", one.getsockname())
        one.settimeout(SILENCE)
        with pytest.raises(TimeoutError):
            one.recv(10)


@pytest.mark.usefixtures("few_ports")
def test_req_11b(lab: Lab) -> None:
    phone = lab["phone4"]
    with phone.socket(DATAGRAM, local_port()) as inside, raw.icmp(phone) as heard:
        inside.connect((lab.ext, 9))
        inside.send(b"?")
        answer = heard.wait(lambda packet: packet[ICMP].type == 3)
        assert answer is not None and answer[ICMP].code == 13
        with pytest.raises(OSError) as refusal:
            inside.recv(10)
        assert refusal.value.errno == errno.EHOSTUNREACH


@pytest.mark.usefixtures("few_ports")
def test_req_11c(lab: Lab) -> None:
    """Counters of their own, in what is there to be polled."""
    phone = lab["phone4"]
    exhausted, refused = wire.counted(phone, "drop_pool_exhausted"), wire.counted(phone, "host_refused")
    with exhausted, refused, phone.socket(DATAGRAM, local_port()) as inside:
        inside.sendto(b"?", (lab.ext, 9))
    assert wire.counter(phone, "host_pool_low") > 0


def test_req_11d(lab: Lab, few_ports: list[socket.socket]) -> None:
    """A hundred others ask for ports; those that have some keep them, the longest idle one as well."""
    phone = lab["phone4"]
    with outsiders(lab) as (one, *_):
        before = [seen(sock, one) for sock in few_ports]
        wire.age(phone, Protocol.UDP, 7000, 250)
        for _ in range(100):
            with phone.socket(DATAGRAM, local_port()) as inside:
                inside.sendto(b"?", one.getsockname())
        assert all(hears(sock, one, endpoint) for sock, endpoint in zip(few_ports, before, strict=True))
        assert [seen(sock, one) for sock in few_ports] == before


def test_req_12(lab: Lab, phone: Node) -> None:
    """Neither logs nor the store nor `show` know whom anybody talked to."""
    with outsiders(lab) as outside, servers(lab) as (server, *_):
        with phone.socket(DATAGRAM, local_port()) as inside:
            ports = [seen(inside, one) and one.getsockname()[1] for one in outside]
        with stream(phone, local_port(), server):
            ports.append(server.getsockname()[1])
    for node in (phone, lab["router"]):
        instance = Instance(node.namespace)
        said = node.dnatctl("show", "-o", "json").stdout
        files = [path for place in (instance.run, instance.state) if place.exists() for path in place.rglob("*")]
        kept = said.encode() + b"".join(path.read_bytes() for path in files if path.is_file())
        assert len(kept) > 1000
        assert wire.second_address(lab).encode() not in kept
        assert socket.inet_aton(wire.second_address(lab)) not in kept
        numbers = [row["port"] for row in json.loads(said)["bindings"]]
        assert not set(ports) & set(numbers)


def test_req_13(lab: Lab, phone: Node) -> None:
    """More connections at once than the host has ports of its own; a translated one serves many destinations."""
    own = len(wire.own_ports(phone, "ephemeral"))
    with servers(lab) as outside, contextlib.ExitStack() as stack:
        local, used = local_port(), set()
        for server in outside:
            used.add(stack.enter_context(stream(phone, local, server))[1].getpeername())
        assert len(used) == 1
        found = set()
        for number in range(own + 16):
            inside = stack.enter_context(_unbound(phone))
            inside.connect(outside[number % 3].getsockname())
            accepted, source = outside[number % 3].accept()
            stack.enter_context(accepted)
            found.add(source[1])
    assert found <= wire.own_ports(phone, "ephemeral") and len(found) < own + 16


def _unbound(phone: Node) -> socket.socket:
    """A socket whose port the kernel picks as it connects."""
    with netns.enter(phone.namespace):
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def test_req_14(lab: Lab, phone: Node) -> None:
    """Nothing is written for a flow: leases are logged by the block."""
    state = [Instance(node.namespace) for node in (phone, lab["router"])]
    leases = len(lab["router"].call("show")["leases"])

    def written() -> list[int]:
        return [Path(one.log).stat().st_size for one in state]

    before = written()
    with outsiders(lab) as (one, *_):
        for _ in range(12):
            with phone.socket(DATAGRAM, local_port()) as inside:
                seen(inside, one)
        for _ in range(100):
            with phone.socket(DATAGRAM) as inside:
                seen(inside, one)
    assert written() == before
    assert len(lab["router"].call("show")["leases"]) == leases


def test_req_15(lab: Lab, phone: Node) -> None:
    """The same local port, again and again: it is seen as another one nearly every time."""
    local = local_port()
    found = []
    with outsiders(lab) as (one, *_), phone.socket(DATAGRAM, local) as inside:
        for _ in range(12):
            wire.forget(phone)
            found.append(seen(inside, one)[1])
    assert len(set(found)) >= 5 and found != sorted(found)
