"""RFC 5382: NAT behaviour for TCP."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from functools import partial

import pytest
import raw
import wire
from error_queue import Told, listen_for_errors, told
from nodes import SECONDS, SILENCE, Lab, Node, eventually
from scapy.layers.inet import ICMP, IP, TCP
from wire import GHOST, STREAM, both_ways, bound, local_port, servers, stream

from dnat.system import netns
from dnat.types import Protocol

ESTABLISHED, CLOSED = b"\x01", b"\x07"
"""Of TCP_INFO."""
NOW = struct.pack("ii", 1, 0)
"""SO_LINGER: an RST on close."""


@both_ways
def test_req_1(lab: Lab, phone: Node, native: bool) -> None:
    with servers(lab) as outside, contextlib.ExitStack() as stack:
        local = local_port(native)
        endpoints = set()
        for server in outside:
            inside, accepted = stack.enter_context(stream(phone, local, server))
            local = inside.getsockname()[1]
            endpoints.add(accepted.getpeername())
        ((address, port),) = endpoints
        assert address == lab.external
        assert port == (local if native else bound(phone, Protocol.TCP, local).port)


def _exchange(one: socket.socket, two: socket.socket) -> None:
    """Half-close: one side ends, the other one still speaks."""
    one.sendall(b"x" * 100_000)
    one.shutdown(socket.SHUT_WR)
    assert sum(map(len, iter(partial(two.recv, 65536), b""))) == 100_000
    two.sendall(b"y" * 100_000)
    two.shutdown(socket.SHUT_WR)
    assert sum(map(len, iter(partial(one.recv, 65536), b""))) == 100_000


def _opened_from_outside(lab: Lab, phone: Node) -> None:
    """To a leased port, and to one that is mapped to another."""
    with wire.leased(phone, "--ports", "2") as port:
        phone.dnatctl("map", "tcp", "8081", "--port", str(port + 1))
        try:
            for local, target in ((port, port), (8081, port + 1)):
                with phone.socket(STREAM, local, listen=True) as server, lab["ext"].socket(STREAM) as outside:
                    outside.connect((lab.external, target))
                    inside, _ = server.accept()
                    with inside:
                        _exchange(inside, outside)
        finally:
            phone.dnatctl("unmap", "tcp", "8081")


@both_ways
@pytest.mark.parametrize("first", ["inside", "outside"])
def test_req_2(lab: Lab, phone: Node, native: bool, first: str) -> None:
    """Opened from inside and from outside; ended by either side, with the other half open for a while; and reset."""
    if first == "outside":
        _opened_from_outside(lab, phone)
    with servers(lab) as (server, *_):
        with stream(phone, local_port(native), server) as (inside, outside):
            _exchange(*((inside, outside) if first == "inside" else (outside, inside)))
        with stream(phone, local_port(native), server) as (inside, outside):
            closing, left = (inside, outside) if first == "inside" else (outside, inside)
            closing.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOW)
            closing.close()
            with pytest.raises(ConnectionResetError):
                left.recv(10)


@both_ways
def test_req_2a(lab: Lab, phone: Node, native: bool) -> None:
    """The SYNs cross: the peer's is sent as soon as ours is seen, and does not acknowledge it."""
    port = wire.outside_port()
    with wire.ghost(lab) as peer, wire.connecting(phone, local_port(native), (GHOST, port)) as inside:
        syn = peer.tcp("S")
        target = (syn.src, syn[TCP].sport)
        peer.send(peer.segment(port, target, "S", seq=1000))
        both = peer.tcp("SA")
        assert (both[TCP].ack, both[TCP].seq) == (1001, syn[TCP].seq)
        peer.send(peer.segment(port, target, "SA", seq=1000, ack=syn[TCP].seq + 1))
        eventually(lambda: inside.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == ESTABLISHED, "established")
        inside.send(b"well met")
        assert bytes(peer.tcp("PA")[TCP].payload) == b"well met"
        peer.send(peer.segment(port, target, "RA", seq=1001, ack=syn[TCP].seq + 1))


@contextlib.contextmanager
def _sharing(phone: Node, port: int) -> Iterator[socket.socket]:
    """A socket at a port that it shares with others."""
    with netns.enter(phone.namespace):
        sock = socket.socket(socket.AF_INET, STREAM)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.settimeout(SECONDS)
        sock.bind(("0.0.0.0", port))
        yield sock


def _accepts(phone: Node, lab: Lab, local: int, source: str) -> tuple[bool, int]:
    """Whether an address reaches a server at a local port that has spoken to the outside, and that port there."""
    with contextlib.ExitStack() as stack:
        server, *_ = stack.enter_context(servers(lab))
        stranger = stack.enter_context(lab["ext"].socket(STREAM, 0, source))
        caller, listener = (stack.enter_context(_sharing(phone, local)) for _ in range(2))
        caller.connect(server.getsockname())
        accepted, endpoint = server.accept()
        stack.enter_context(accepted)
        listener.listen(1)
        stranger.settimeout(SILENCE)
        try:
            stranger.connect(endpoint)
        except TimeoutError:
            return False, endpoint[1]
        listener.accept()[0].close()
        return True, endpoint[1]


def test_req_3(lab: Lab, phone: Node) -> None:
    """Anybody reaches a server behind a port that has spoken to somebody; a native one likewise."""
    strangers = [lab.ext, wire.second_address(lab)]
    native = min(wire.own_ports(phone, "ephemeral"))
    for source in strangers:
        assert _accepts(phone, lab, local_port(), source)[0]
        assert _accepts(phone, lab, native, source) == (True, native)


def test_req_3a(lab: Lab, strict: Node) -> None:
    assert _accepts(strict, lab, local_port(), lab.ext)[0]
    before = wire.counter(strict, "drop_filtered")
    assert not _accepts(strict, lab, local_port(), wire.second_address(lab))[0]
    assert wire.counter(strict, "drop_filtered") > before


def _free_port(phone: Node) -> int:
    """Of the pool, without a binding."""
    return max(wire.own_ports(phone, "translated"))


def test_req_4(lab: Lab, phone: Node) -> None:
    """Nothing is said for six seconds about SYNs to a port that nobody owns and to one that no binding uses. Then the
    host opens a connection to one of them: what came early stays unanswered, all the same.
    """
    port, free = wire.outside_port(), _free_port(phone)
    with wire.ghost(lab) as peer:
        with wire.counted(phone, "drop_unbound"), wire.counted(lab["router"], "drop_no_owner"):
            for target in (9999, free):
                peer.send(peer.segment(port, (lab.external, target), "S"))
            assert peer.wait(lambda packet: True, 6.1) is None
        with wire.counted(phone, "drop_unbound"):
            peer.send(peer.segment(port, (lab.external, free), "S"))
        with wire.connecting(phone, free, (GHOST, port)):
            assert peer.tcp("S")[TCP].sport == free
            assert peer.wait(lambda packet: packet[TCP].flags != "S", SILENCE) is None


def test_req_4a(lab: Lab, phone: Node) -> None:
    """Nor is there any ICMP message, which the security policy of a shared address forbids: it would tell which ports
    are leased.
    """
    unbound, unowned = wire.counted(phone, "drop_unbound"), wire.counted(lab["router"], "drop_no_owner")
    with raw.icmp(lab["ext"]) as heard, unbound, unowned:
        for target in (9999, _free_port(phone)):
            syn = IP(src=lab.ext, dst=lab.external) / TCP(sport=wire.outside_port(), dport=target, flags="S")
            raw.send(lab["ext"], [syn])
        assert heard.wait(lambda packet: packet[ICMP].type == 3, 2 * SILENCE) is None


def _opening(lab: Lab, phone: Node) -> int:
    """A binding whose SYN was not answered; returns the local port."""
    local = local_port()
    with wire.connecting(phone, local, (GHOST, 9)):
        eventually(lambda: wire.binding(phone, Protocol.TCP, local), "a binding")
    return local


def test_req_5(lab: Lab, phone: Node) -> None:
    assert bound(phone, Protocol.TCP, _opening(lab, phone)).state == "opening"
    wire.check_timer(phone, Protocol.TCP, _opening(lab, phone), _opening(lab, phone), 240)
    with servers(lab) as (server, *_), contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(stream(phone, local_port(), server)) for _ in range(2)]
        kept, gone = (inside.getsockname()[1] for inside, _ in pairs)
        assert bound(phone, Protocol.TCP, kept).state == "established"
        wire.check_timer(phone, Protocol.TCP, kept, gone, 7440)
        inside, outside = pairs[0]
        outside.send(b"still there?")
        assert inside.recv(100) == b"still there?"


def test_req_5a(lab: Lab, strict: Node) -> None:
    wire.check_timer(strict, Protocol.TCP, _opening(lab, strict), _opening(lab, strict), 250)
    with servers(lab) as (server, *_), contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(stream(strict, local_port(), server)) for _ in range(2)]
        kept, gone = (inside.getsockname()[1] for inside, _ in pairs)
        wire.check_timer(strict, Protocol.TCP, kept, gone, 8000)


FTP = b"PORT 10,66,0,11,78,52\r\n"
SIP = b"REGISTER sip:203.0.113.2 SIP/2.0\r\nVia: SIP/2.0/TCP 10.66.0.11:5060\r\nContent-Length: 0\r\n\r\n"


@both_ways
@pytest.mark.parametrize(("port", "words"), [(21, FTP), (5060, SIP)], ids=["FTP", "SIP"])
def test_req_6(lab: Lab, phone: Node, native: bool, port: int, words: bytes) -> None:
    """What a gateway would change passes as it is, both ways."""
    with lab["ext"].socket(STREAM, port, listen=True) as server, phone.socket(STREAM, local_port(native)) as inside:
        inside.connect((lab.ext, port))
        outside, _ = server.accept()
        with outside:
            inside.sendall(words)
            assert outside.recv(1000) == words
            outside.sendall(words)
            assert inside.recv(1000) == words


def test_req_7(lab: Lab, phone: Node, other: Node) -> None:
    local = local_port()
    with servers(lab) as (server, *_), contextlib.ExitStack() as stack:
        ways = [(node, local) for node in (phone, other, lab["phone3"])]
        ways += [(phone, local_port(odd=bool(number % 2))) for number in range(8)] + [(phone, 0)] * 8
        pairs = [stack.enter_context(stream(node, port, server)) for node, port in ways]
        endpoints = [outside.getpeername() for _, outside in pairs]
        assert len(set(endpoints)) == len(endpoints)
        for number, (inside, outside) in enumerate(pairs):
            outside.send(bytes([number]))
            assert inside.recv(10) == bytes([number])


def _hairpin(lab: Lab, phone: Node, other: Node, native: bool) -> None:
    with wire.leased(other, "--ports", "2") as port, servers(lab) as (outside_server, *_):
        other.dnatctl("map", "tcp", "8082", "--port", str(port + 1))
        try:
            for local, target in ((port, port), (8082, port + 1)):
                mine = local_port(native)
                with contextlib.ExitStack() as stack:
                    # The outside's view of the caller, from the same local port.
                    first, seen = stack.enter_context(stream(phone, mine, outside_server))
                    endpoint, mine = seen.getpeername(), first.getsockname()[1]
                    server = stack.enter_context(other.socket(STREAM, local, listen=True))
                    caller = stack.enter_context(phone.socket(STREAM, mine))
                    caller.connect((lab.external, target))
                    called, source = server.accept()
                    stack.enter_context(called)
                    called.settimeout(SECONDS)
                    assert source == endpoint
                    assert caller.getpeername() == (lab.external, target)
                    _exchange(caller, called)
        finally:
            other.dnatctl("unmap", "tcp", "8082")


@both_ways
def test_req_8(lab: Lab, phone: Node, other: Node, native: bool) -> None:
    """Through the router and back, to a native and to a translated port."""
    before = wire.counter(lab["router"], "router_hairpin")
    _hairpin(lab, phone, other, native)
    assert wire.counter(lab["router"], "router_hairpin") > before


@both_ways
def test_req_8a(lab: Lab, phone: Node, other: Node, native: bool) -> None:
    """The source that the called one sees is the one that the outside sees."""
    _hairpin(lab, phone, other, native)


@both_ways
def test_req_9(lab: Lab, phone: Node, native: bool) -> None:
    port = wire.outside_port()
    with wire.ghost(lab) as peer, wire.connecting(phone, local_port(native), (GHOST, port)) as inside:
        listen_for_errors(inside)
        syn = peer.tcp("S")
        peer.send(wire.error(syn, lab.ext, lab.external, 3, 1))
        assert told(inside) == Told(lab.ext, 3, 1)
        assert inside.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == CLOSED


@both_ways
def test_req_10(lab: Lab, phone: Node, native: bool) -> None:
    errors = [(3, code) for code in range(16) if code != 4] + [(4, 0), (5, 1), (11, 0), (12, 0)]
    with servers(lab) as (server, *_), stream(phone, local_port(native), server) as (inside, outside):
        before = None if native else bound(phone, Protocol.TCP, inside.getsockname()[1])
        source, target = outside.getpeername(), server.getsockname()
        quoted = IP(src=source[0], dst=target[0]) / TCP(sport=source[1], dport=target[1], seq=1)
        for kind, code in errors:
            raw.send(lab["ext"], [wire.error(IP(bytes(quoted)), lab.ext, lab.external, kind, code)])
        outside.sendall(b"still there?")
        assert inside.recv(100) == b"still there?"
        inside.sendall(b"yes")
        assert outside.recv(100) == b"yes"
        if before:
            after = bound(phone, Protocol.TCP, inside.getsockname()[1])
            assert (after.port, after.state, after.age > before.age) == (before.port, "established", True)
