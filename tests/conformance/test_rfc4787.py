"""RFC 4787: NAT behaviour for unicast UDP."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
from collections.abc import Iterator

import pytest
import raw
import wire
from error_queue import Told, listen_for_errors, told, told_now
from nodes import Lab, Node, eventually
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.packet import Packet, Raw
from wire import DATAGRAM, both_ways, bound, datagram, hears, is_deaf, local_port, outsiders, seen

from dnat.types import Protocol

NARROW = 1300
IP_MTU_DISCOVER, IP_MTU, PMTUDISC_DONT, PMTUDISC_DO = 10, 14, 0, 2


@both_ways
def test_req_1(lab: Lab, phone: Node, native: bool) -> None:
    local = local_port(native)
    with phone.socket(DATAGRAM, local) as inside, outsiders(lab) as outside:
        endpoints = {seen(inside, one) for one in outside}
        ((address, port),) = endpoints
        assert address == lab.external
        if native:
            assert port == inside.getsockname()[1]
        else:
            assert port == bound(phone, Protocol.UDP, local).port


def test_req_2(pool_lab: Lab) -> None:
    """Two external addresses, and more hosts than one of them has ports for."""
    used = set()
    for name in ("phone1", "phone2", "sip"):
        phone = pool_lab[name]
        with outsiders(pool_lab) as outside, wire.leased(phone, "--ports", "2") as extra:
            ways = (0, local_port(), extra)
            addresses = set()
            for local in ways:
                with phone.socket(DATAGRAM, local) as inside:
                    addresses |= {seen(inside, one)[0] for one in outside}
            addresses |= {lease["address"] for lease in phone.call("show")["leases"]}
        assert len(addresses) == 1, f"all that {name} does comes from one address"
        used |= addresses
    assert used == set(pool_lab["router"].call("show")["external_addresses"])


def test_req_3(lab: Lab, phone: Node, other: Node) -> None:
    local = local_port()
    with outsiders(lab) as (one, *_), contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(node.socket(DATAGRAM, local)) for node in (phone, other, lab["phone3"])]
        sockets += [stack.enter_context(phone.socket(DATAGRAM, local_port())) for _ in range(12)]
        native = sorted(wire.own_ports(phone, "ephemeral"))[:12]
        sockets += [stack.enter_context(phone.socket(DATAGRAM, port)) for port in native]
        endpoints = [seen(sock, one) for sock in sockets]
        assert len(set(endpoints)) == len(endpoints)
        for sock, endpoint in zip(sockets, endpoints, strict=True):
            assert hears(sock, one, endpoint), "and each answer finds its own socket"


def test_req_3a(lab: Lab, phone: Node) -> None:
    with outsiders(lab) as (one, *_):
        for local in (700, 1024, local_port(), 0, 65000):
            with phone.socket(DATAGRAM, local) as inside:
                assert seen(inside, one)[1] >= 1024


def test_req_4(lab: Lab, phone: Node) -> None:
    """Of many ports, in any order; RTP's and RTCP's get neighbours."""
    locals_ = [local_port(odd=odd) for odd in (True, False, False, True, True, True, False, False)]
    with outsiders(lab) as (one, *_):
        for local in locals_:
            with phone.socket(DATAGRAM, local) as inside:
                assert seen(inside, one)[1] % 2 == local % 2
        rtp = local_port()
        with phone.socket(DATAGRAM, rtp) as media, phone.socket(DATAGRAM, rtp + 1) as control:
            assert seen(media, one)[1] + 1 == seen(control, one)[1]


def _two_bindings(lab: Lab, phone: Node) -> tuple[int, int]:
    ports = local_port(), local_port()
    with outsiders(lab) as (one, *_):
        for local in ports:
            with phone.socket(DATAGRAM, local) as inside:
                seen(inside, one)
    return ports


def test_req_5(lab: Lab, phone: Node) -> None:
    """The daemon's sweep leaves a binding that was idle for two minutes, and the outside still reaches it."""
    local, _ = _two_bindings(lab, phone)
    before = bound(phone, Protocol.UDP, local).port
    wire.age(phone, Protocol.UDP, local, 120)
    other, gone = _two_bindings(lab, phone)
    wire.check_timer(phone, Protocol.UDP, other, gone, 300)
    with phone.socket(DATAGRAM, local) as inside, outsiders(lab) as (one, *_):
        assert hears(inside, one, (lab.external, before))


def test_req_5b(lab: Lab, strict: Node) -> None:
    kept, gone = _two_bindings(lab, strict)
    assert 125 < bound(strict, Protocol.UDP, kept).expires_in <= 130
    wire.check_timer(strict, Protocol.UDP, kept, gone, 130)


def test_req_5c(lab: Lab, phone: Node) -> None:
    local, _ = _two_bindings(lab, phone)
    assert bound(phone, Protocol.UDP, local).expires_in > 295


def test_req_6(lab: Lab, phone: Node) -> None:
    local = local_port()
    with phone.socket(DATAGRAM, local) as inside, outsiders(lab) as (one, *_):
        endpoint = seen(inside, one)
        wire.age(phone, Protocol.UDP, local, 200)
        assert bound(phone, Protocol.UDP, local).idle >= 200
        assert seen(inside, one) == endpoint
        assert bound(phone, Protocol.UDP, local).idle < 100


def test_req_6a(lab: Lab, strict: Node) -> None:
    """A setting; without it, see section 7 of RFC 7857."""
    local = local_port()
    with strict.socket(DATAGRAM, local) as inside, outsiders(lab) as (one, *_):
        endpoint = seen(inside, one)
        wire.age(strict, Protocol.UDP, local, 100)
        assert hears(inside, one, endpoint)
        assert bound(strict, Protocol.UDP, local).idle < 50


@both_ways
def test_req_8(lab: Lab, phone: Node, native: bool) -> None:
    with phone.socket(DATAGRAM, local_port(native)) as inside, outsiders(lab) as outside:
        endpoint = seen(inside, outside[0])
        for stranger in outside:
            assert hears(inside, stranger, endpoint)


def test_req_8a(lab: Lab, strict: Node) -> None:
    """Address-dependent: another port of a known address is heard, another address is not."""
    with strict.socket(DATAGRAM, local_port()) as inside, outsiders(lab) as (known, same, stranger):
        endpoint = seen(inside, known)
        assert hears(inside, same, endpoint)
        with wire.counted(strict, "drop_filtered"):
            assert is_deaf(inside, stranger, endpoint)
        assert seen(inside, stranger) == endpoint
        assert hears(inside, stranger, endpoint)


@pytest.mark.parametrize("caller", [True, False], ids=["from native", "from translated"])
@pytest.mark.parametrize("called", [True, False], ids=["to native", "to translated"])
def test_req_9(lab: Lab, phone: Node, other: Node, caller: bool, called: bool) -> None:
    with phone.socket(DATAGRAM, local_port(caller)) as one, other.socket(DATAGRAM, local_port(called)) as two:
        with outsiders(lab) as (outside, *_):
            first, second = seen(one, outside), seen(two, outside)
        with wire.counted(lab["router"], "router_hairpin", 2):
            assert hears(two, one, second)
            assert hears(one, two, first)


@pytest.mark.parametrize("caller", [True, False], ids=["from native", "from translated"])
@pytest.mark.parametrize("called", [True, False], ids=["to native", "to translated"])
def test_req_9a(lab: Lab, phone: Node, other: Node, caller: bool, called: bool) -> None:
    with phone.socket(DATAGRAM, local_port(caller)) as one, other.socket(DATAGRAM, local_port(called)) as two:
        with outsiders(lab) as (outside, *_):
            first, second = seen(one, outside), seen(two, outside)
        one.sendto(b"who am I?", second)
        assert two.recvfrom(100) == (b"who am I?", first)
        two.sendto(b"and I?", first)
        assert one.recvfrom(100) == (b"and I?", second)


SIP = (
    b"REGISTER sip:203.0.113.2 SIP/2.0\r\nVia: SIP/2.0/UDP 10.66.0.11:5060;rport\r\n"
    b"Contact: <sip:alice@10.66.0.11:5060>\r\nContent-Length: 0\r\n\r\n"
)
TFTP = b"\x00\x01file 10.66.0.11\x00octet\x00"
H225 = b"\x12\x00\x00\x00\x0a\x42\x00\x0b\x06\xb7"


@pytest.mark.parametrize(("port", "words"), [(5060, SIP), (69, TFTP), (1719, H225)], ids=["SIP", "TFTP", "H.323"])
def test_req_10(lab: Lab, phone: Node, port: int, words: bytes) -> None:
    """What a gateway would change passes as it is, both ways, from the port it is known by."""
    with phone.socket(DATAGRAM, port) as inside, lab["ext"].socket(DATAGRAM, port) as outside:
        inside.sendto(words, (lab.ext, port))
        data, source = outside.recvfrom(1000)
        assert data == words
        outside.sendto(words, source)
        assert inside.recvfrom(1000) == (words, (lab.ext, port))


def test_req_11(lab: Lab, phone: Node, other: Node, few_ports: list[socket.socket]) -> None:
    """Neither a neighbour with the same local port nor an empty pool changes how it maps and filters."""
    local = local_port()
    with phone.socket(DATAGRAM, local) as one, other.socket(DATAGRAM, local) as two, outsiders(lab) as outside:
        for inside in (one, two, *few_ports):
            endpoints = {seen(inside, stranger) for stranger in outside}
            assert len(endpoints) == 1
            (endpoint,) = endpoints
            assert all(hears(inside, stranger, endpoint) for stranger in outside)


EVERY_ERROR = [(3, code) for code in range(16)] + [(4, 0), (5, 0), (5, 1), (11, 0), (11, 1), (12, 0), (12, 1)]


def test_req_12(lab: Lab, phone: Node) -> None:
    local = local_port()
    with phone.socket(DATAGRAM, local) as inside, outsiders(lab) as (one, *_):
        endpoint = seen(inside, one)
        before = bound(phone, Protocol.UDP, local)
        quoted = datagram(endpoint, one.getsockname())
        for kind, code in EVERY_ERROR:
            raw.send(lab["ext"], [wire.error(quoted, lab.ext, lab.external, kind, code)])
        listen_for_errors(inside)
        raw.send(lab["ext"], [wire.error(quoted, lab.ext, lab.external, 3, 10)])
        eventually(lambda: told_now(inside) == Told(lab.ext, 3, 10), "the last one has arrived")
        while told_now(inside):
            pass
        assert hears(inside, one, endpoint)
        after = bound(phone, Protocol.UDP, local)
        assert (after.port, after.age > before.age) == (before.port, True)


@both_ways
def test_req_12a(lab: Lab, phone: Node, native: bool) -> None:
    """From the destination, from another host, from a router far away."""
    with phone.socket(DATAGRAM, local_port(native)) as inside, outsiders(lab) as (one, *_):
        endpoint = seen(inside, one)
        listen_for_errors(inside)
        for sender in (lab.ext, wire.second_address(lab), "192.0.2.99"):
            raw.send(lab["ext"], [wire.error(datagram(endpoint, one.getsockname()), sender, lab.external)])
            assert told(inside) == Told(sender, 3, 1)


@both_ways
def test_req_12b(lab: Lab, phone: Node, native: bool) -> None:
    """The outside's own stack says that nobody is there."""
    with phone.socket(DATAGRAM, local_port(native)) as inside:
        inside.connect((lab.ext, wire.outside_port()))
        inside.send(b"anyone?")
        with pytest.raises(ConnectionRefusedError):
            inside.recv(10)


def _parts(source: tuple[str, int], target: tuple[str, int], words: bytes) -> list[Packet]:
    """A datagram in fragments."""
    whole = datagram(source, target, words)
    whole.id = random.randrange(1, 65536)
    return [IP(bytes(part)) for part in fragment(whole, fragsize=1480)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_req_14(lab: Lab, phone: Node, order: tuple[int, ...]) -> None:
    """To a native and to a translated port, and from a native one."""
    words = random.randbytes(4000)
    with outsiders(lab) as (one, *_):
        for native in (True, False):
            with phone.socket(DATAGRAM, local_port(native)) as inside:
                endpoint = seen(inside, one)
                parts = _parts(one.getsockname(), endpoint, words)
                raw.send(lab["ext"], [parts[place] for place in order])
                assert inside.recvfrom(65536) == (words, one.getsockname())
        with phone.socket(DATAGRAM) as inside:
            parts = _parts((lab.external, inside.getsockname()[1]), one.getsockname(), words)
            raw.send(phone, [parts[place] for place in order])
            assert one.recvfrom(65536) == (words, (lab.external, inside.getsockname()[1]))


def test_req_14a(lab: Lab, phone: Node) -> None:
    words = random.randbytes(2500)
    flood = [
        IP(src=f"192.0.2.{number % 16 + 100}", dst=lab.external, id=number, proto=17, flags="MF", frag=185)
        / Raw(b"x" * 1000)
        for number in range(1000)
    ]
    router = lab["router"]
    before = wire.counter(router, "drop_fragment_no_room")
    with phone.socket(DATAGRAM, local_port()) as inside, outsiders(lab) as (one, *_):
        endpoint = seen(inside, one)
        raw.send(lab["ext"], flood)
        assert hears(inside, one, endpoint), "unfragmented"
        raw.send(lab["ext"], _parts(one.getsockname(), endpoint, words))
        assert inside.recvfrom(65536) == (words, one.getsockname()), "in order"
    assert wire.counter(router, "drop_fragment_no_room") >= before + 500, "the attack is bounded"


# Last, as the router's MTU stays changed for them.


@pytest.fixture(scope="module")
def narrow(lab: Lab) -> Iterator[Lab]:
    """The WAN takes 1,300 octets."""
    router, phone = lab["router"], lab["phone1"]
    with phone.socket(DATAGRAM) as sock:
        port = sock.getsockname()[1]

    def answers() -> bool:
        phone.run("ip", "route", "flush", "cache")
        probe = IP(src=lab.external, dst=lab.ext, flags="DF") / UDP(sport=port, dport=9) / Raw(bytes(NARROW))
        with raw.icmp(phone) as heard:
            raw.send(phone, [IP(bytes(probe))])
            return heard.wait(lambda packet: (packet[ICMP].type, packet[ICMP].code) == (3, 4), 0.3) is not None

    router.run("ip", "link", "set", "wan", "mtu", str(NARROW))
    try:
        eventually(answers, "the data plane knows", seconds=20)
        phone.run("ip", "route", "flush", "cache")
        yield lab
    finally:
        router.run("ip", "link", "set", "wan", "mtu", "1500")
        eventually(lambda: not answers(), "the data plane knows", seconds=20)
        phone.run("ip", "route", "flush", "cache")


@both_ways
def test_req_13(narrow: Lab, phone: Node, native: bool) -> None:
    """The program learns the MTU from its kernel, which only the router's answer could tell."""
    phone.run("ip", "route", "flush", "cache")
    with phone.socket(DATAGRAM, local_port(native)) as inside, raw.icmp(phone) as heard:
        inside.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
        inside.connect((narrow.ext, wire.outside_port()))
        inside.send(bytes(1400))
        answer = heard.wait(lambda packet: (packet[ICMP].type, packet[ICMP].code) == (3, 4))
        assert answer is not None and answer[ICMP].nexthopmtu == NARROW
        with pytest.raises(OSError, match="Message too long"):
            inside.send(bytes(1400))
        assert inside.getsockopt(socket.IPPROTO_IP, IP_MTU) == NARROW


@contextlib.contextmanager
def checksums_complete(node: Node) -> Iterator[None]:
    node.run("ethtool", "-K", "eth0", "tx", "off")
    try:
        yield
    finally:
        node.run("ethtool", "-K", "eth0", "tx", "on")


@both_ways
def test_req_13a(narrow: Lab, phone: Node, native: bool) -> None:
    """In order, and whole at the other end. The sender completes its checksums itself, as what comes from a wire has
    them; the router cannot cut a packet whose checksum a device is still to fill in, and answers it like one with DF.
    """
    words = random.randbytes(1400)
    with (
        checksums_complete(phone),
        phone.socket(DATAGRAM, local_port(native)) as inside,
        outsiders(narrow) as (one, *_),
    ):
        inside.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT)
        seen(inside, one)
        with wire.frames(narrow["ext"]) as arriving:
            inside.sendto(words, one.getsockname())
            assert one.recv(2000) == words
            parts = wire.drain(arriving, lambda packet: packet.src == narrow.external and packet.proto == 17)
    assert len(parts) == 2
    assert all(part.len <= NARROW for part in parts)
    assert [part.frag > 0 for part in parts] == [False, True]
