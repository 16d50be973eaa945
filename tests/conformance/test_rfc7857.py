"""RFC 7857: updates to NAT behaviour."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct

import pytest
import raw
import wire
from error_queue import Told, listen_for_errors, told
from nodes import SILENCE, Lab, Node, eventually
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.packet import Raw
from wire import DATAGRAM, GHOST, bound, datagram, hears, local_port, outsiders, seen, servers, stream

from dnat.types import Protocol

NOW = struct.pack("ii", 1, 0)
"""SO_LINGER: an RST on close."""
TRANSITORY = 240


def _state(phone: Node, local: int) -> str:
    return bound(phone, Protocol.TCP, local).state


def test_section_2(lab: Lab, phone: Node) -> None:
    """Opening, established, half closed (which is established), closing; and open anew."""
    local = local_port()
    with wire.connecting(phone, local, (GHOST, 9)):
        eventually(lambda: wire.binding(phone, Protocol.TCP, local), "a binding")
        assert _state(phone, local) == "opening"
    local = local_port()
    with servers(lab) as (server, other, _):
        with stream(phone, local, server) as (inside, outside):
            inside.sendall(b"x")
            assert outside.recv(10) == b"x"
            assert _state(phone, local) == "established"
            inside.shutdown(socket.SHUT_WR)
            assert outside.recv(10) == b""
            assert _state(phone, local) == "established"
            outside.close()
            eventually(lambda: _state(phone, local) == "closing", "closed by both sides")
        with stream(phone, local, other) as (inside, outside):
            inside.sendall(b"x")
            assert outside.recv(10) == b"x"
            assert _state(phone, local) == "established"


@pytest.mark.parametrize(("name", "seconds"), [("phone1", TRANSITORY), ("phone3", 250)], ids=["default", "configured"])
def test_section_2_1(lab: Lab, name: str, seconds: int) -> None:
    """While a connection opens, and when it has been closed."""
    phone = lab[name]
    opening, closing = local_port(), local_port()
    with wire.connecting(phone, opening, (GHOST, 9)), servers(lab) as (server, *_):
        eventually(lambda: wire.binding(phone, Protocol.TCP, opening), "a binding")
        with stream(phone, closing, server) as (inside, outside):
            inside.close()
            assert outside.recv(10) == b""
        eventually(lambda: _state(phone, closing) == "closing", "closed by both sides")
        wire.check_timer(phone, Protocol.TCP, opening, closing, seconds)


@pytest.mark.parametrize("sender", ["inside", "outside"])
def test_section_2_2(lab: Lab, phone: Node, sender: str) -> None:
    """The RST arrives at the other end. The mapping stays, but not for as long as before."""
    local = local_port()
    with servers(lab) as (server, *_):
        with stream(phone, local, server) as ends:
            port = bound(phone, Protocol.TCP, local).port
            resets, reset = ends if sender == "inside" else ends[::-1]
            resets.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOW)
            resets.close()
            with pytest.raises(ConnectionResetError):
                reset.recv(10)
        after = bound(phone, Protocol.TCP, local)
        assert (after.port, after.state) == (port, "closing")
        assert TRANSITORY - 5 < after.expires_in <= TRANSITORY
        other = local_port()
        with stream(phone, other, server) as (inside, outside):
            outside.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOW)
            outside.close()
            with pytest.raises(ConnectionResetError):
                inside.recv(10)
        wire.check_timer(phone, Protocol.TCP, local, other, TRANSITORY)


def test_section_4(pool_lab: Lab) -> None:
    """Further ports are of the address that the host has, while another has more of them free."""
    server = pool_lab["router"].call("show")
    for name in ("phone1", "phone2", "sip"):
        phone = pool_lab[name]
        (mine,) = {lease["address"] for lease in phone.call("show")["leases"]}
        used = [lease for lease in server["leases"] if lease["address"] == mine]
        others = [lease for lease in server["leases"] if lease["address"] != mine]
        more_elsewhere = sum(lease["last"] - lease["first"] + 1 for lease in used) > sum(
            lease["last"] - lease["first"] + 1 for lease in others
        )
        lease = phone.request("--ports", "2")
        assert lease["address"] == mine, f"{more_elsewhere=}"
        phone.dnatctl("release", str(lease["first"]))


def test_section_5(lab: Lab, phone: Node) -> None:
    """The same local port, both protocols at once: each answer comes to its own."""
    local = local_port()
    with phone.socket(DATAGRAM, local) as inside, outsiders(lab) as (one, *_), servers(lab) as (server, *_):
        udp = seen(inside, one)
        assert wire.binding(phone, Protocol.TCP, local) is None
        with stream(phone, local, server) as (connected, accepted):
            tcp = accepted.getpeername()
            assert bound(phone, Protocol.UDP, local).port == udp[1]
            assert bound(phone, Protocol.TCP, local).port == tcp[1]
            assert hears(inside, one, udp)
            accepted.sendall(b"tcp")
            assert connected.recv(10) == b"tcp"
        wire.age(phone, Protocol.UDP, local, 300)
        eventually(lambda: wire.binding(phone, Protocol.UDP, local) is None, "UDP's goes", seconds=15)
        assert wire.binding(phone, Protocol.TCP, local) is not None, "TCP's stays"


def test_section_6(lab: Lab, phone: Node) -> None:
    """Where UDP is let in, TCP is not."""
    with phone.socket(DATAGRAM, local_port()) as inside, outsiders(lab) as (one, *_), wire.ghost(lab) as peer:
        endpoint = seen(inside, one)
        assert hears(inside, one, endpoint)
        with wire.counted(phone, "drop_unbound"):
            peer.send(peer.segment(wire.outside_port(), endpoint, "S"))
            assert peer.wait(lambda packet: True, SILENCE) is None


def test_section_7(lab: Lab, phone: Node) -> None:
    local = local_port()
    with phone.socket(DATAGRAM, local) as inside, outsiders(lab) as (one, same, stranger):
        endpoint = seen(inside, one)
        wire.age(phone, Protocol.UDP, local, 100)
        for sender in (one, same, stranger):
            assert hears(inside, sender, endpoint)
        assert bound(phone, Protocol.UDP, local).idle >= 100


def test_section_7_1(lab: Lab, phone: Node) -> None:
    """Nobody listens any more, and the outside goes on sending: the phone's answers keep nothing alive."""
    local = local_port()
    with outsiders(lab) as (one, *_), raw.icmp(lab["ext"]) as heard:
        with phone.socket(DATAGRAM, local) as inside:
            endpoint = seen(inside, one)
        wire.age(phone, Protocol.UDP, local, 100)
        raw.send(lab["ext"], [datagram(one.getsockname(), endpoint)])
        assert heard.wait(lambda packet: (packet[ICMP].type, packet[ICMP].code) == (3, 3)) is not None
        assert bound(phone, Protocol.UDP, local).idle >= 100
    with servers(lab) as (server, *_), wire.ghost(lab) as peer:

        def resets_count_for_nothing(state: str) -> bool:
            wire.age(phone, Protocol.TCP, local, 100)
            peer.send(peer.segment(wire.outside_port(), endpoint, "A", ack=1))
            answer = peer.wait(lambda packet: TCP in packet)
            assert answer is not None and "R" in answer[TCP].flags
            found = bound(phone, Protocol.TCP, local)
            return found.state == state and found.idle >= 100

        # More than once where the connection's own segments are late.
        with stream(phone, local, server) as (_, outside):
            endpoint = outside.getpeername()
            eventually(lambda: resets_count_for_nothing("established"), "a stranger is answered while it is open")
        eventually(lambda: resets_count_for_nothing("closing"), "and when it is closed")


def test_section_8(lab: Lab, phone: Node) -> None:
    for parity, remainder in (("even", 0), ("odd", 1)):
        for _ in range(4):
            with wire.leased(phone, "--ports", "2", "--parity", parity) as first:
                assert first % 2 == remainder
                with phone.socket(DATAGRAM, first) as inside, outsiders(lab) as (one, *_):
                    assert seen(inside, one)[1] == first


def test_section_9(lab: Lab, phone: Node, other: Node) -> None:
    """Neighbouring local ports get no neighbours, in no order that repeats; and hosts' own ports lie apart."""
    orders = []
    with outsiders(lab) as (one, *_):
        for _ in range(2):
            wire.forget(phone)
            found = []
            for _ in range(10):
                with phone.socket(DATAGRAM, local_port()) as inside:
                    found.append(seen(inside, one)[1])
            steps = {later - earlier for earlier, later in itertools.pairwise(found)}
            assert len(steps) >= 4 and found != sorted(found)
            orders.append(found)
    assert orders[0] != orders[1]
    gaps = {min(wire.own_ports(node, "ephemeral")) for node in (phone, other, lab["phone3"], lab["phone4"])}
    assert max(gaps) - min(gaps) > 256


def test_section_10(lab: Lab, phone: Node, other: Node) -> None:
    """Two hosts send datagrams in fragments with the same identification, interleaved: the receiver mixes nothing."""
    words = {node.name: random.randbytes(2500) for node in (phone, other)}
    with outsiders(lab) as (one, *_), contextlib.ExitStack() as stack, wire.frames(lab["ext"]) as arriving:
        parts, ports = {}, {}
        for node in (phone, other):
            inside = stack.enter_context(node.socket(DATAGRAM))
            ports[node.name] = inside.getsockname()[1]
            whole = datagram((lab.external, ports[node.name]), one.getsockname(), words[node.name])
            whole.id = 4711
            parts[node.name] = [IP(bytes(part)) for part in fragment(whole, fragsize=1480)]
        for node, number in ((phone, 0), (other, 0), (other, 1), (phone, 1)):
            raw.send(node, [parts[node.name][number]])
        got = {source[1]: data for data, source in (one.recvfrom(65536) for _ in range(2))}
        assert got == {ports[name]: word for name, word in words.items()}
        arrived = wire.drain(arriving, lambda packet: packet.src == lab.external and packet.proto == 17)
    by_host = [
        {packet.id for packet in arrived if packet.frag == 0 and packet[UDP].sport == ports[name]} for name in ports
    ]
    assert len(by_host[0]) == len(by_host[1]) == 1 and by_host[0] != by_host[1]


def test_section_12(lab: Lab, phone: Node, other: Node) -> None:
    """An error about a hairpinned packet, from the called host's side, where both ends are translated."""
    with (
        phone.socket(DATAGRAM, local_port()) as inside,
        other.socket(DATAGRAM, local_port()) as called,
        outsiders(lab) as (one, *_),
    ):
        mine, theirs = seen(inside, one), seen(called, one)
        assert hears(called, inside, theirs)
        listen_for_errors(inside)
        quoted = IP(src=mine[0], dst=lab.external) / UDP(sport=mine[1], dport=called.getsockname()[1]) / Raw(b"words")
        message = wire.error(IP(bytes(quoted)), lab.external, lab.external, 3, 10)
        with wire.counted(lab["router"], "router_hairpin"):
            raw.send(other, [message])
            assert told(inside) == Told(lab.external, 3, 10)
