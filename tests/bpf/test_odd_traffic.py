"""Real traffic that is rarer: ICMP, path MTU, jumbo frames, IP options, UDP without checksum, UDP-Lite."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bpf_bench import REMOTE
from network import OWN_PORTS, POOLS, Network
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from dnat.dataplane import loader

UDP, TCP = socket.SOCK_DGRAM, socket.SOCK_STREAM
NATIVE, TRANSLATED = OWN_PORTS["a"].first, 4000
DISTANT_ROUTER = "192.0.2.9"
IP_OPTIONS, IP_RECVERR, IP_MTU = 4, 11, 14
SO_NO_CHECK = 11
UDPLITE, UDPLITE_SEND_CSCOV = 136, 10
ETHERNET = 14


@pytest.fixture(scope="module")
def node_pins(pins: Path) -> dict[str, Path]:
    nodes = {"a": "host", "b": "host", "router": "router"}
    for node, role in nodes.items():
        loader.ensure_loaded("host" if role == "host" else "router", pins / f"odd-{node}")
    return {node: pins / f"odd-{node}" for node in nodes}


@pytest.fixture(scope="module", params=[1500, 9000], ids=["1500", "jumbo"])
def network(request: pytest.FixtureRequest, node_pins: dict[str, Path]) -> Iterator[Network]:
    built = Network(own=False, offloads=True, mtu=request.param)
    try:
        built.start(node_pins)
        yield built
    finally:
        built.close()


both = pytest.mark.parametrize("port", [NATIVE, TRANSLATED], ids=["native", "translated"])


class Wire:
    """The outside's interface: what arrives, and what a router out there says about it."""

    def __init__(self, seen: socket.socket, raw: socket.socket) -> None:
        self._seen = seen
        self._raw = raw

    def next(self, protocol: int) -> IP:
        """The next packet of a protocol from the shared address."""
        while True:
            packet = IP(self._seen.recv(65536)[ETHERNET:])
            if packet.proto == protocol and packet.src != REMOTE:
                return packet

    def complain(self, about: IP, octets: int = 28, **fields: int) -> None:
        """Send an ICMP error that quotes the first octets of a packet."""
        error = IP(src=DISTANT_ROUTER, dst=about.src) / ICMP(**fields) / Raw(bytes(about)[:octets])
        self._raw.sendto(bytes(error), (about.src, 0))


@pytest.fixture
def wire(network: Network) -> Iterator[Wire]:
    with network.inside("ext"):
        seen = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        seen.bind(("eth0", 0x0800))
    seen.settimeout(20)
    with seen, raw:
        yield Wire(seen, raw)


def extended_error(sock: socket.socket) -> tuple[int, int, str]:
    """ICMP type, code and sender of the next error that the kernel kept for a socket."""
    poller = select.poll()
    poller.register(sock, select.POLLERR)
    assert poller.poll(5000), "no error came"
    _, ancillary, _, _ = sock.recvmsg(2000, 512, socket.MSG_ERRQUEUE)
    (data,) = (data for level, kind, data in ancillary if (level, kind) == (socket.IPPROTO_IP, IP_RECVERR))
    kind, code = struct.unpack_from("=IBBBB", data)[2:4]
    return kind, code, socket.inet_ntoa(data[20:24])


@both
def test_traceroute_learns_who_is_on_the_way(network: Network, wire: Wire, port: int) -> None:
    with network.socket("a", UDP, port) as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sock.sendto(b"how far?", (REMOTE, 33434))
        wire.complain(wire.next(17), type="time-exceeded")
        errors = {extended_error(sock), extended_error(sock)}
        assert errors == {(3, 3, REMOTE), (11, 0, DISTANT_ROUTER)}, "the end of the way, and one on it"


@pytest.mark.parametrize("identifier", [77, NATIVE], ids=["translated", "native"])
def test_ping_and_an_error_about_it(network: Network, wire: Wire, identifier: int) -> None:
    with network.inside("a"):
        sock = socket.socket(socket.AF_INET, UDP, socket.IPPROTO_ICMP)
    with sock:
        sock.settimeout(20)
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sock.bind(("0.0.0.0", identifier))
        sock.sendto(bytes(ICMP(type="echo-request")), (REMOTE, 0))
        query = wire.next(1)
        assert query[ICMP].id in (OWN_PORTS["a"] if identifier == NATIVE else POOLS["a"])
        assert sock.recv(100)[0] == 0, "the reply"
        wire.complain(query, type="time-exceeded")
        assert extended_error(sock) == (11, 0, DISTANT_ROUTER)


@both
def test_path_mtu_discovery(network: Network, wire: Wire, port: int) -> None:
    """RFC 1191: what is said of the packet on the wire reaches the socket, and the route learns from it."""
    with network.socket("a", UDP, port) as sock:
        sock.connect((REMOTE, 33434))
        sock.send(b"x" * 1400)
        wire.complain(wire.next(17), type="dest-unreach", code=4, nexthopmtu=1200)
        with pytest.raises(OSError, match=r"Message too long|Connection refused"):
            for _ in range(50):
                sock.send(b"x" * 1400)
                select.select([], [], [sock], 0.05)
        assert sock.getsockopt(socket.IPPROTO_IP, IP_MTU) == 1200
    network.run("a", "ip route flush cache")


@both
def test_udp_without_checksum(network: Network, wire: Wire, port: int) -> None:
    with network.socket("a", UDP, port) as sock, network.socket("ext", UDP, 7777) as outside:
        sock.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        sock.sendto(b"unchecked", (REMOTE, 7777))
        words, sender = outside.recvfrom(100)
        assert words == b"unchecked"
        assert bytes(wire.next(17))[26:28] == b"\0\0"
        outside.sendto(b"answer", sender)
        assert sock.recv(100) == b"answer"


@both
def test_ip_options(network: Network, port: int) -> None:
    """Router alert: the longest way through the kernel, and ports four octets further on."""
    with network.socket("a", UDP, port) as sock, network.socket("ext", UDP, 7777) as outside:
        sock.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, b"\x94\x04\x00\x00")
        sock.sendto(b"with options", (REMOTE, 7777))
        words, sender = outside.recvfrom(100)
        assert words == b"with options"
        outside.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, b"\x94\x04\x00\x00")
        outside.sendto(b"answer", sender)
        assert sock.recv(100) == b"answer"


@contextmanager
def udplite(network: Network, node: str, port: int) -> Iterator[socket.socket]:
    with network.inside(node):
        opened = socket.socket(socket.AF_INET, UDP, UDPLITE)
    with opened:
        opened.settimeout(20)
        opened.bind(("0.0.0.0", port))
        yield opened


@both
@pytest.mark.parametrize("coverage", [0, 8], ids=["whole", "header only"])
def test_udplite(network: Network, port: int, coverage: int) -> None:
    with udplite(network, "a", port) as sock, udplite(network, "ext", 7777) as outside:
        for end in (sock, outside):
            end.setsockopt(UDPLITE, UDPLITE_SEND_CSCOV, coverage)
        sock.sendto(b"lightly checked", (REMOTE, 7777))
        words, sender = outside.recvfrom(100)
        assert words == b"lightly checked"
        outside.sendto(b"answer", sender)
        assert sock.recv(100) == b"answer"


@both
def test_a_full_frame_of_any_size(network: Network, port: int) -> None:
    with network.socket("a", UDP, port) as sock, network.socket("ext", UDP, 7777) as outside:
        for size in (1472, 8972, 30000):
            sock.sendto(b"x" * size, (REMOTE, 7777))
            words, sender = outside.recvfrom(65536)
            assert len(words) == size
            outside.sendto(words, sender)
            assert len(sock.recv(65536)) == size
