"""RFC 5508: NAT behaviour for ICMP."""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
from collections.abc import Callable, Iterator

import pytest
import raw
import wire
from error_queue import Told, is_not_told, listen_for_errors, told
from nodes import SILENCE, Lab, Node, eventually
from scapy.layers.inet import ICMP, IP, UDP, IPerror, IPOption, UDPerror
from scapy.packet import Packet, Raw
from wire import DATAGRAM, both_ways, bound, datagram, error, identifier, local_port, outsiders, seen

from dnat.types import Protocol

ROUTER_ALERT = [IPOption(b"\x94\x04\x00\x00")]
UNREACHABLE = [(3, code) for code in range(16)]
OTHER_ERRORS = [(11, 0), (11, 1), (12, 0), (12, 1)]


def is_icmp(kind: int, code: int | None = None) -> Callable[[Packet], bool]:
    return lambda packet: packet[ICMP].type == kind and code in (None, packet[ICMP].code)


@pytest.mark.parametrize(("asks", "answers"), [(8, 0), (13, 14)], ids=["echo", "timestamp"])
def test_req_1(lab: Lab, phone: Node, other: Node, asks: int, answers: int) -> None:
    """Of two hosts with the same identifier at once: each gets the answer to its own."""
    number = identifier()
    with raw.icmp(phone) as one, raw.icmp(other) as two:
        for node, sequence in ((phone, 1), (other, 2)):
            raw.send(node, [IP(src=lab.external, dst=lab.ext) / ICMP(type=asks, id=number, seq=sequence)])
        for heard, sequence, strange in ((one, 1, 2), (two, 2, 1)):
            answer = heard.wait(is_icmp(answers))
            assert answer is not None and raw.checksums_right(answer)
            assert (answer[ICMP].id, answer[ICMP].seq, answer.src) == (number, sequence, lab.ext)
            assert heard.wait(lambda packet, strange=strange: packet[ICMP].seq == strange, SILENCE) is None


def test_req_1a(lab: Lab, phone: Node) -> None:
    number = identifier()
    with raw.icmp(lab["ext"]) as outside:
        arrived = set()
        for sequence, target in enumerate((lab.ext, wire.second_address(lab))):
            raw.send(phone, [IP(src=lab.external, dst=target) / ICMP(id=number, seq=sequence)])
            request = outside.wait(lambda packet, seq=sequence: packet[ICMP].type == 8 and packet[ICMP].seq == seq)
            assert request is not None and request.dst == target
            arrived.add(request[ICMP].id)
    assert arrived == {bound(phone, Protocol.ICMP, number).port}


def _two_sessions(lab: Lab, phone: Node) -> tuple[int, int]:
    numbers = identifier(), identifier()
    for number in numbers:
        wire.echo_through(phone, lab, number)
    return numbers


def test_req_2(lab: Lab, phone: Node) -> None:
    wire.check_timer(phone, Protocol.ICMP, *_two_sessions(lab, phone), 60)


def test_req_2a(lab: Lab, strict: Node) -> None:
    wire.check_timer(strict, Protocol.ICMP, *_two_sessions(lab, strict), 70)


@contextlib.contextmanager
def talking(lab: Lab, phone: Node, native: bool) -> Iterator[tuple[socket.socket, Packet]]:
    """A socket that is told of errors, and a packet of it as the outside saw it."""
    with phone.socket(DATAGRAM, local_port(native)) as inside, outsiders(lab) as (one, *_):
        endpoint = seen(inside, one)
        listen_for_errors(inside)
        yield inside, datagram(endpoint, one.getsockname())


@both_ways
def test_req_3(lab: Lab, phone: Node, native: bool) -> None:
    """Also the host's stack counts it as damaged. The same error in order is heard."""
    with talking(lab, phone, native) as (inside, quoted):
        good = IP(bytes(error(quoted, lab.ext, lab.external)))
        bad = good.copy()
        bad[ICMP].chksum ^= 0x0101
        before = wire.snmp(phone, "Icmp", "InCsumErrors")
        raw.send(lab["ext"], [bad])
        assert is_not_told(inside)
        eventually(lambda: wire.snmp(phone, "Icmp", "InCsumErrors") == before + 1, "counted as damaged")
        raw.send(lab["ext"], [good])
        assert told(inside) == Told(lab.ext, 3, 1)


@both_ways
def test_req_3a(lab: Lab, phone: Node, native: bool) -> None:
    with talking(lab, phone, native) as (inside, quoted):
        careless = bytearray(bytes(quoted))
        careless[8] -= 1
        before = phone.counter("drop_quote_damaged")
        raw.send(lab["ext"], [error(bytes(careless), lab.ext, lab.external)])
        assert is_not_told(inside)
        assert phone.counter("drop_quote_damaged") == before + 1
        raw.send(lab["ext"], [error(bytes(quoted), lab.ext, lab.external)])
        assert told(inside) == Told(lab.ext, 3, 1)


@both_ways
@pytest.mark.parametrize("outer", [[], ROUTER_ALERT], ids=["plain", "options"])
def test_req_3b(lab: Lab, phone: Node, native: bool, outer: list[IPOption]) -> None:
    with talking(lab, phone, native) as (inside, quoted):
        header = IP(src=quoted.src, dst=quoted.dst, options=ROUTER_ALERT * 3, proto=17)
        message = IP(src=lab.ext, dst=lab.external, options=outer) / ICMP(type=3, code=1)
        raw.send(lab["ext"], [message / Raw(bytes(header / quoted[UDP]))])
        assert told(inside) == Told(lab.ext, 3, 1)


@both_ways
def test_req_3c(lab: Lab, phone: Node, native: bool) -> None:
    """A quoted packet whose checksum is wrong is believed; and one that is cut off after eight octets."""
    with talking(lab, phone, native) as (inside, quoted):
        damaged = quoted.copy()
        damaged[UDP].chksum ^= 0x1234
        for packet in (bytes(damaged), bytes(quoted)[:28]):
            raw.send(lab["ext"], [error(packet, lab.ext, lab.external)])
            assert told(inside) == Told(lab.ext, 3, 1)


EXTENSION = b"\x20\x00\x1f\x1b\x00\x08\x01\x01\x00\x3e\x81\x01"
"""RFC 4884 and RFC 4950: an MPLS label."""


@both_ways
def test_req_3d(lab: Lab, phone: Node, native: bool) -> None:
    """Padding and extension arrive as they were sent, and the checksum is right."""
    with talking(lab, phone, native) as (inside, quoted), raw.icmp(phone) as heard:
        padded = bytes(quoted).ljust(128, b"\0") + EXTENSION
        message = IP(src=lab.ext, dst=lab.external) / ICMP(type=11, code=0, length=32) / Raw(padded)
        raw.send(lab["ext"], [message])
        assert told(inside) == Told(lab.ext, 11, 0)
        arrived = heard.wait(is_icmp(11))
        assert arrived is not None and raw.checksums_right(arrived)
        assert arrived.original[28 + len(quoted) :] == padded[len(quoted) :]


def test_req_4(lab: Lab, phone: Node, other: Node) -> None:
    """About a port that nobody owns, and about one of a pool that no binding uses."""
    free = max(wire.own_ports(phone, "translated"))
    with raw.icmp(phone) as one, raw.icmp(other) as two, raw.icmp(lab["ext"]) as outside:
        with wire.counted(lab["router"], "drop_no_owner"), wire.counted(phone, "drop_unbound"):
            for port in (9999, free):
                quoted = datagram((lab.external, port), (lab.ext, 9))
                raw.send(lab["ext"], [error(quoted, lab.ext, lab.external)])
        for heard in (one, two, outside):
            assert heard.wait(is_icmp(3), SILENCE) is None


@both_ways
def test_req_4a(lab: Lab, phone: Node, native: bool) -> None:
    """Ports and checksums of the quoted packet are those that the host had put there."""
    with talking(lab, phone, native) as (inside, quoted), raw.icmp(phone) as heard:
        raw.send(lab["ext"], [error(quoted, lab.ext, lab.external)])
        arrived = heard.wait(is_icmp(3))
        assert arrived is not None and raw.checksums_right(arrived)
        local = inside.getsockname()[1]
        sent = datagram((lab.external, local), (lab.ext, quoted[UDP].dport), bytes(quoted[Raw]))
        sent.id, sent.chksum = quoted.id, quoted.chksum
        assert arrived.original[28:] == bytes(sent)


@both_ways
def test_req_4b(lab: Lab, phone: Node, native: bool) -> None:
    with talking(lab, phone, native) as (_, quoted), raw.icmp(phone) as heard:
        for kind, code in UNREACHABLE + OTHER_ERRORS:
            raw.send(lab["ext"], [error(quoted, lab.ext, lab.external, kind, code)])
            arrived = heard.wait(is_icmp(kind))
            assert arrived is not None and arrived[ICMP].code == code


@both_ways
def test_req_4c(lab: Lab, phone: Node, other: Node, native: bool) -> None:
    """To the one whose packet it was, at the address that it was sent from; to nobody else."""
    with talking(lab, phone, native) as (_, quoted), raw.icmp(phone) as mine, raw.icmp(other) as theirs:
        raw.send(lab["ext"], [error(quoted, lab.ext, lab.external)])
        arrived = mine.wait(is_icmp(3))
        assert arrived is not None
        assert (arrived.dst, IP(arrived.original[28:]).src) == (lab.external, lab.external)
        assert theirs.wait(is_icmp(3), SILENCE) is None


def test_req_5(lab: Lab, phone: Node) -> None:
    quoted = datagram((lab.ext, 9), (lab.external, local_port()))
    with raw.icmp(lab["ext"]) as outside, wire.counted(phone, "drop_error_unbound"):
        raw.send(phone, [error(quoted, lab.external, lab.ext)])
        assert outside.wait(is_icmp(3), SILENCE) is None


@contextlib.contextmanager
def gone(lab: Lab, phone: Node, native: bool) -> Iterator[tuple[tuple[str, int], socket.socket]]:
    """The endpoint of a socket that is closed, and one outside that knew it."""
    with outsiders(lab) as (one, *_):
        with phone.socket(DATAGRAM, local_port(native)) as inside:
            endpoint = seen(inside, one)
        yield endpoint, one


@both_ways
def test_req_5a(lab: Lab, phone: Node, native: bool) -> None:
    """The phone's own stack answers; what it quotes is what the outside sent, TTL and header checksum apart."""
    with gone(lab, phone, native) as (endpoint, one), raw.icmp(lab["ext"]) as heard:
        sent = datagram(one.getsockname(), endpoint)
        raw.send(lab["ext"], [sent])
        arrived = heard.wait(is_icmp(3, 3))
        assert arrived is not None and raw.checksums_right(arrived)
        assert arrived.original[28:][12:] == bytes(sent)[12:]


@both_ways
def test_req_5b(lab: Lab, phone: Node, native: bool) -> None:
    with phone.socket(DATAGRAM, local_port(native)) as inside, outsiders(lab) as (one, *_):
        endpoint = seen(inside, one)
        quoted = datagram(one.getsockname(), (lab.external, inside.getsockname()[1]))
        with raw.icmp(lab["ext"]) as heard:
            for kind, code in UNREACHABLE + OTHER_ERRORS:
                raw.send(phone, [error(quoted, lab.external, lab.ext, kind, code)])
                arrived = heard.wait(is_icmp(kind))
                assert arrived is not None and arrived[ICMP].code == code
                assert arrived[UDPerror].dport == endpoint[1]


@both_ways
def test_req_5c(lab: Lab, phone: Node, native: bool) -> None:
    with gone(lab, phone, native) as (endpoint, one), raw.icmp(lab["ext"]) as heard:
        one.sendto(b"anyone?", endpoint)
        arrived = heard.wait(is_icmp(3, 3))
        assert arrived is not None
        assert (arrived.src, arrived[IPerror].dst) == (lab.external, lab.external)


def test_req_6(lab: Lab, phone: Node) -> None:
    """Errors in both directions about a ping leave its session as old as it is."""
    number = identifier()
    request = wire.echo_through(phone, lab, number)
    wire.age(phone, Protocol.ICMP, number, 30)
    before = bound(phone, Protocol.ICMP, number)
    reply = IP(src=lab.ext, dst=lab.external) / ICMP(type=0, id=number, seq=1) / Raw(b"ping")
    with raw.icmp(phone) as inside, raw.icmp(lab["ext"]) as outside:
        for kind in (3, 11, 12):
            raw.send(lab["ext"], [error(bytes(request), lab.ext, lab.external, kind, 0)])
            assert inside.wait(is_icmp(kind)) is not None
            raw.send(phone, [error(bytes(reply), lab.external, lab.ext, kind, 0)])
            assert outside.wait(is_icmp(kind)) is not None
    after = bound(phone, Protocol.ICMP, number)
    assert after.idle >= 30 and after.port == before.port
    assert after.age - after.idle == pytest.approx(before.age - before.idle, abs=0.001)
    assert wire.echo_through(phone, lab, number, 2)[ICMP].id == request[ICMP].id


@both_ways
def test_req_7(lab: Lab, phone: Node, other: Node, native: bool) -> None:
    """Nobody listens any more at another host's translated port: its stack says so, and the sender hears of it."""
    for called in (True, False):
        with gone(lab, other, called) as (endpoint, _), phone.socket(DATAGRAM, local_port(native)) as inside:
            listen_for_errors(inside)
            with wire.counted(lab["router"], "router_hairpin", 2):
                inside.sendto(b"anyone?", endpoint)
                assert told(inside) == Told(lab.external, 3, 3)


@both_ways
def test_req_7a(lab: Lab, phone: Node, other: Node, native: bool) -> None:
    with gone(lab, other, False) as (endpoint, one), phone.socket(DATAGRAM, local_port(native)) as inside:
        mine = seen(inside, one)
        with raw.icmp(phone) as heard:
            inside.sendto(b"anyone?", endpoint)
            arrived = heard.wait(is_icmp(3, 3))
        assert arrived is not None and raw.checksums_right(arrived)
        assert arrived.dst == mine[0]
        quoted = IP(arrived.original[28:])
        assert (quoted.src, quoted.dst) == (mine[0], endpoint[0])
        assert (quoted[UDP].sport, quoted[UDP].dport) == (inside.getsockname()[1], endpoint[1])


@pytest.mark.usefixtures("few_ports")
def test_req_8(lab: Lab) -> None:
    """The program is told at once, and nothing leaves."""
    phone = lab["phone4"]
    with phone.socket(DATAGRAM, local_port()) as inside, raw.icmp(phone) as heard, outsiders(lab) as (one, *_):
        inside.connect(one.getsockname())
        with wire.counted(phone, "drop_pool_exhausted"), wire.counted(phone, "host_refused"):
            inside.send(b"?")
            with pytest.raises(OSError) as refusal:
                inside.recv(10)
        assert refusal.value.errno == errno.EHOSTUNREACH
        arrived = heard.wait(is_icmp(3, 13))
        assert arrived is not None and raw.checksums_right(arrived)
        one.settimeout(SILENCE)
        with pytest.raises(TimeoutError):
            one.recv(10)


def test_req_9(lab: Lab, quiet: Node) -> None:
    """The setting that keeps the last test's answer from being made."""
    with quiet.socket(DATAGRAM, local_port()) as inside, raw.icmp(quiet) as heard:
        inside.connect((lab.ext, wire.ECHO))
        with wire.counted(quiet, "drop_pool_exhausted"):
            inside.send(b"?")
            assert heard.wait(is_icmp(3), SILENCE) is None
        assert wire.counter(quiet, "host_refused") == 0


@both_ways
def test_req_10a(lab: Lab, phone: Node, native: bool) -> None:
    """Made by the router where it is at fault, and passed on."""
    with phone.socket(DATAGRAM, local_port(native)) as inside:
        listen_for_errors(inside)
        inside.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        inside.sendto(b"?", (lab.ext, 33434))
        assert told(inside) == Told("10.66.0.1", 11, 0)
        inside.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 2)
        inside.sendto(b"?", (lab.ext, 33434))
        assert told(inside) == Told(lab.ext, 3, 3)
    assert "1 received" in phone.run("ping", "-c", "1", "-W", "15", lab.ext).stdout


@both_ways
def test_req_10b(lab: Lab, phone: Node, native: bool) -> None:
    """Parameter problem; timestamps are in REQ-1."""
    with talking(lab, phone, native) as (inside, quoted):
        raw.send(lab["ext"], [error(quoted, lab.ext, lab.external, 12, 0)])
        assert told(inside) == Told(lab.ext, 12, 0)


@both_ways
def test_req_10c(lab: Lab, phone: Node, native: bool) -> None:
    with talking(lab, phone, native) as (inside, quoted):
        raw.send(lab["ext"], [error(quoted, lab.ext, lab.external, 4, 0)])
        assert is_not_told(inside)
        raw.send(lab["ext"], [error(quoted, lab.ext, lab.external, 3, 1)])
        assert told(inside) == Told(lab.ext, 3, 1)


def test_req_10d(lab: Lab, phone: Node) -> None:
    """Internetwork control, whatever the packet at fault had."""
    with raw.icmp(phone) as heard, phone.socket(DATAGRAM) as inside:
        inside.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        for field in (0, 0xB8):
            inside.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, field)
            inside.sendto(b"?", (lab.ext, 9))
            answer = heard.wait(is_icmp(11))
            assert answer is not None and answer.tos == 0xC0


def test_req_10e(lab: Lab, phone: Node) -> None:
    router, ext = lab["router"], lab["ext"]
    with wire.leased(phone) as port, raw.icmp(ext) as heard:
        quoted = datagram((lab.external, port), (lab.ext, 9))
        first = IP(src=lab.ext, dst=lab.external, id=4001, flags="MF") / UDP(dport=port, len=100) / Raw(bytes(8))
        silent = [
            error(quoted, lab.ext, lab.external),
            IP(src=lab.ext, dst=lab.external, id=4001, frag=2, proto=17) / Raw(bytes(8)),
            IP(src="0.0.0.0", dst=lab.external) / UDP(dport=port),
            IP(src="224.0.0.9", dst=lab.external) / UDP(dport=port),
        ]
        raw.send(ext, [first])
        for packet in silent[:2]:
            packet.ttl = 1
            with wire.counted(router, "drop_ttl_expired"), wire.counted(router, "router_error_unsent"):
                raw.send(ext, [packet])
        for packet in silent[3:]:
            packet.ttl = 1
            raw.send(ext, [packet])
        assert heard.wait(is_icmp(11), SILENCE) is None
        raw.send(ext, [IP(src=lab.ext, dst=lab.external, ttl=1) / UDP(dport=port)])
        assert heard.wait(is_icmp(11)) is not None, "others are answered"


LIMIT = 1000
"""Errors of a kind a second; earlier ones count."""


def test_req_10f(lab: Lab, phone: Node) -> None:
    """Four thousand packets at once; all are dropped, some are answered, and the others counted."""
    router = lab["router"]
    names = ("drop_ttl_expired", "router_time_exceeded", "router_error_unsent")
    with wire.leased(phone) as port:
        packet = IP(src=lab.ext, dst=lab.external, ttl=1) / UDP(dport=port)
        before = {name: wire.counter(router, name) for name in names}
        raw.send(lab["ext"], itertools.repeat(IP(bytes(packet)), 4000))

        def counted() -> dict[str, int]:
            return {name: wire.counter(router, name) - before[name] for name in names}

        eventually(lambda: counted()["drop_ttl_expired"] == 4000, "all are dropped")
    found = counted()
    assert found["router_time_exceeded"] + found["router_error_unsent"] == 4000
    assert LIMIT - 50 <= found["router_time_exceeded"] < 4000


def test_req_11(lab: Lab, phone: Node) -> None:
    """Redirect, router discovery, address mask: dropped by the router."""
    with raw.icmp(phone) as heard:
        for kind in (9, 10, 17, 18):
            with wire.counted(lab["router"], "drop_error_unmapped"):
                raw.send(lab["ext"], [IP(src=lab.ext, dst=lab.external) / ICMP(type=kind)])
        quoted = datagram((lab.external, min(wire.own_ports(phone, "ephemeral"))), (lab.ext, 9))
        with wire.counted(lab["router"], "drop_error_unmapped"):
            raw.send(lab["ext"], [error(quoted, lab.ext, lab.external, 5, 1)])
        assert heard.wait(lambda packet: packet[ICMP].type in (5, 9, 10, 17, 18), SILENCE) is None
