"""What the tests do to a NAT, and what they see of it from both sides."""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import raw
from nodes import SECONDS, SILENCE, Lab, Node, eventually
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet, Raw

from dnat.dataplane import abi
from dnat.dataplane.host import Binding
from dnat.system import netns
from dnat.types import Protocol

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
ECHO, HTTP = 7, 80
GHOST = "192.0.2.50"
"""Packets to it reach the outside, where nobody has it."""
_ETH_P_IP, _HEAD = 0x0800, 14
_NANOSECONDS = 1_000_000_000
_CLASS_OF = {Protocol.TCP: abi.PortClass.TCP, Protocol.UDP: abi.PortClass.UDP, Protocol.ICMP: abi.PortClass.ICMP}

_local_ports = itertools.count(20_000, 2)
_identifiers = itertools.count(3000)
_outside_ports = itertools.count(42_000)

both_ways = pytest.mark.parametrize("native", [True, False], ids=["native", "translated"])
"""From a port of the host's own, and from one that is translated."""


def local_port(native: bool = False, odd: bool = False) -> int:
    """A port that no other test uses: of the kernel's choice, or one that has to be translated."""
    return 0 if native else next(_local_ports) + odd


def identifier() -> int:
    """Of a query."""
    return next(_identifiers)


def outside_port() -> int:
    return next(_outside_ports)


def second_address(lab: Lab) -> str:
    """Another host of the outside, for all that anybody can tell."""
    return lab.ext.rsplit(".", 1)[0] + ".3"


@contextlib.contextmanager
def outsiders(lab: Lab) -> Iterator[list[socket.socket]]:
    """UDP sockets of the outside: one, another port of the same address, another address."""
    ext = lab["ext"]
    with (
        ext.socket(DATAGRAM, 0, lab.ext) as one,
        ext.socket(DATAGRAM, 0, lab.ext) as two,
        ext.socket(DATAGRAM, 0, second_address(lab)) as three,
    ):
        yield [one, two, three]


@contextlib.contextmanager
def servers(lab: Lab) -> Iterator[list[socket.socket]]:
    """TCP servers of the outside, at the same three places."""
    ext = lab["ext"]
    with (
        ext.socket(STREAM, 0, lab.ext, listen=True) as one,
        ext.socket(STREAM, 0, lab.ext, listen=True) as two,
        ext.socket(STREAM, 0, second_address(lab), listen=True) as three,
    ):
        yield [one, two, three]


def seen(inside: socket.socket, outside: socket.socket) -> tuple[str, int]:
    """Whom the outside takes the sender of a datagram for."""
    word = time.monotonic_ns().to_bytes(8)
    inside.sendto(word, outside.getsockname())
    data, source = outside.recvfrom(100)
    assert data == word
    return str(source[0]), int(source[1])


@contextlib.contextmanager
def stream(phone: Node, port: int, server: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from a local port: both ends."""
    with phone.socket(STREAM, port) as inside:
        inside.connect(server.getsockname())
        outside, _ = server.accept()
        with outside:
            outside.settimeout(SECONDS)
            yield inside, outside


def hears(receiver: socket.socket, sender: socket.socket, target: tuple[str, int], patience: float = SECONDS) -> bool:
    """Whether a datagram arrives; give little patience where it should not."""
    word = time.monotonic_ns().to_bytes(8)
    sender.sendto(word, target)
    receiver.settimeout(patience)
    try:
        return receiver.recvfrom(100)[0] == word
    except TimeoutError:
        return False
    finally:
        receiver.settimeout(SECONDS)


def is_deaf(receiver: socket.socket, sender: socket.socket, target: tuple[str, int]) -> bool:
    return not hears(receiver, sender, target, SILENCE)


def own_ports(phone: Node, purpose: str) -> set[int]:
    """The ports that a host leases for a purpose."""
    leases = [lease for lease in phone.call("show")["leases"] if lease["purpose"] == purpose]
    return {port for lease in leases for port in range(lease["first"], lease["last"] + 1)}


def counter(node: Node, name: str) -> int:
    return int(node.call("show")["counters"][name])


@contextlib.contextmanager
def counted(node: Node, name: str, times: int = 1) -> Iterator[None]:
    """What happens within is counted, exactly so many times."""
    before = counter(node, name)
    yield
    eventually(lambda: counter(node, name) >= before + times, f"{name} is counted")
    assert counter(node, name) == before + times


@contextlib.contextmanager
def leased(phone: Node, *options: str) -> Iterator[int]:
    """The first of some explicit ports."""
    first = int(phone.request(*(options or ("--ports", "1")))["first"])
    try:
        yield first
    finally:
        phone.dnatctl("release", str(first))


# Bindings


def binding(phone: Node, protocol: Protocol, local: int) -> Binding | None:
    """As the map has it."""
    with contextlib.closing(phone.plane()) as plane:
        for found in plane.bindings(time.monotonic()):
            if (found.protocol, found.local_port) == (protocol, local):
                return found
    return None


def bound(phone: Node, protocol: Protocol, local: int) -> Binding:
    found = binding(phone, protocol, local)
    assert found is not None
    return found


def age(phone: Node, protocol: Protocol, local: int, seconds: float) -> None:
    """Make a binding older: the time of its last use is moved in the map. Before the machine started there was no
    time; what is missing there is taken from the timer.
    """
    key = bytes(abi.PortKey(local, _CLASS_OF[protocol], 0))
    with contextlib.closing(phone.plane()) as plane:
        table = plane._maps["bindings_out"]
        value = table.get(key)
        assert value is not None
        entry = abi.Binding.from_buffer_copy(value)
        moved = min(int(seconds * _NANOSECONDS), entry.seen_ns)
        entry.seen_ns -= moved
        entry.idle_seconds -= math.ceil(seconds - moved / _NANOSECONDS)
        table.put(key, bytes(entry))


def check_timer(phone: Node, protocol: Protocol, short: int, long: int, seconds: int, margin: int = 20) -> None:
    """Of two bindings of the same kind, the one that was idle for ``margin`` seconds less than the timer outlives the
    daemon's next sweep, the other one does not. Nobody waits for hours: the map's time stamps are moved.
    """
    for local in (short, long):
        assert seconds - 5 < bound(phone, protocol, local).expires_in <= seconds
    age(phone, protocol, short, seconds - margin)
    kept = bound(phone, protocol, short)
    assert 0 < kept.expires_in <= margin + 1
    age(phone, protocol, long, seconds)
    eventually(lambda: binding(phone, protocol, long) is None, "it is swept", seconds=15)
    still = bound(phone, protocol, short)
    assert (still.port, still.expires_in > 0) == (kept.port, True)


def forget(phone: Node) -> None:
    """End all bindings, so that a test finds all ports free."""
    with contextlib.closing(phone.plane()) as plane:
        for found in plane.bindings(time.monotonic()):
            if not found.static:
                plane.forget(found)
        plane.sweep(time.monotonic())


# ICMP


def datagram(source: tuple[str, int], target: tuple[str, int], words: bytes = b"words") -> Packet:
    """As it is on the wire, with its checksums."""
    packet = IP(src=source[0], dst=target[0]) / UDP(sport=source[1], dport=target[1]) / Raw(words)
    return IP(bytes(packet))


def error(quoted: Packet | bytes, source: str, target: str, kind: int = 3, code: int = 1) -> Packet:
    """An ICMP error about a packet."""
    return IP(src=source, dst=target) / ICMP(type=kind, code=code) / Raw(bytes(quoted))


def echo_through(phone: Node, lab: Lab, number: int, sequence: int = 1) -> Packet:
    """Ping the outside with an identifier; returns the request as it arrived there."""
    with raw.icmp(lab["ext"]) as outside, raw.icmp(phone) as inside:
        raw.send(phone, [IP(src=lab.external, dst=lab.ext) / ICMP(id=number, seq=sequence) / Raw(b"ping")])
        request = outside.wait(lambda packet: packet[ICMP].type == 8 and packet[ICMP].seq == sequence)
        answer = inside.wait(lambda packet: packet[ICMP].type == 0 and packet[ICMP].id == number)
    assert request is not None and answer is not None
    return request


# Peers without a stack


class Ghost:
    """A peer outside that says only what a test wants, at the address GHOST."""

    def __init__(self, lab: Lab, wire: socket.socket) -> None:
        self._ext = lab["ext"]
        self._wire = wire

    def send(self, packet: Packet) -> None:
        raw.send(self._ext, [packet])

    def wait(self, wanted: Callable[[Packet], bool], seconds: float = SECONDS) -> Packet | None:
        """The first packet to it, or from anybody in an answer to it, that is wanted."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._wire.settimeout(left)
            try:
                packet = IP(self._wire.recv(65536)[_HEAD:])
            except TimeoutError:
                return None
            if packet.dst == GHOST and wanted(packet):
                return packet
        return None

    def tcp(self, flags: str) -> Packet:
        """The next segment with exactly these flags."""
        found = self.wait(lambda packet: TCP in packet and packet[TCP].flags == flags)
        assert found is not None, f"no segment {flags}"
        return found

    def segment(self, port: int, target: tuple[str, int], flags: str, **fields: Any) -> Packet:
        return IP(src=GHOST, dst=target[0]) / TCP(sport=port, dport=target[1], flags=flags, **fields)


@contextlib.contextmanager
def ghost(lab: Lab) -> Iterator[Ghost]:
    with lab["ext"].packet_socket(_ETH_P_IP) as wire:
        yield Ghost(lab, wire)


@contextlib.contextmanager
def connecting(phone: Node, port: int, target: tuple[str, int]) -> Iterator[socket.socket]:
    """A socket whose SYN is on its way."""
    with phone.socket(STREAM, port) as sock:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(target)
        sock.settimeout(SECONDS)
        yield sock


def frames(node: Node) -> contextlib.AbstractContextManager[socket.socket]:
    """IPv4 frames that arrive at a node's eth0."""
    return node.packet_socket(_ETH_P_IP)


def drain(wire: socket.socket, wanted: Callable[[Packet], bool], seconds: float = SILENCE) -> list[Packet]:
    """All that is wanted until nothing has come for a while."""
    found = []
    wire.settimeout(seconds)
    try:
        while True:
            packet = IP(wire.recv(65536)[_HEAD:])
            if wanted(packet):
                found.append(packet)
    except TimeoutError:
        return found


def fill(sockets: contextlib.ExitStack, phone: Node, lab: Lab, ports: Sequence[int]) -> list[socket.socket]:
    """Sockets that have spoken to the outside."""
    made = [sockets.enter_context(phone.socket(DATAGRAM, port)) for port in ports]
    for sock in made:
        sock.sendto(b"?", (lab.ext, ECHO))
        assert sock.recv(10) == b"?"
    return made


def snmp(node: Node, protocol: str, name: str) -> int:
    """A counter of a node's own stack."""
    with netns.enter(node.namespace), open("/proc/thread-self/net/snmp", encoding="ascii") as file:  # noqa: PTH123
        rows = [line.split() for line in file if line.startswith(f"{protocol}:")]
    return int(rows[1][rows[0].index(name)])
