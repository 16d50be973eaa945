"""Links of different MTU around the router: path-MTU discovery, and fragments of what allows them."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import raw
from nodes import Lab, eventually
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.packet import Raw

UDP_SOCKET, TCP_SOCKET = socket.SOCK_DGRAM, socket.SOCK_STREAM
NARROW = 1300
OUTSIDE = 7700
BULK = random.randbytes(1_000_000)
_IP_MTU_DISCOVER, _IP_MTU = 10, 14
_DONT, _DO = 0, 2


@contextmanager
def mtu(lab: Lab, interface: str, octets: int) -> Iterator[None]:
    """Change one of the router's MTUs, and wait until the data plane knows."""
    router = lab["router"]
    try:
        router.run("ip", "link", "set", interface, "mtu", str(octets))
        eventually(lambda: _answers(lab, interface, octets), "the router answers", seconds=20)
        yield
    finally:
        router.run("ip", "link", "set", interface, "mtu", "1500")
        eventually(lambda: not _answers(lab, interface, octets), "the router stops to answer", seconds=20)
        lab.forget_mtus()


def _answers(lab: Lab, interface: str, octets: int) -> bool:
    """Whether a packet of one octet too many is refused on its way out of an interface."""
    lab.forget_mtus()
    phone, ext = lab["phone1"], lab["ext"]
    port = phone.ports("ephemeral").first
    source, target = (lab.external, lab.ext) if interface == "wan" else (lab.ext, lab.external)
    ports = {"sport": port, "dport": 9} if interface == "wan" else {"sport": 9, "dport": port}
    probe = IP(src=source, dst=target, flags="DF") / UDP(**ports) / Raw(bytes(octets + 1 - 28))
    sender = phone if interface == "wan" else ext
    with raw.icmp(sender) as heard:
        raw.send(sender, [IP(bytes(probe))])
        return heard.wait(lambda packet: (packet[ICMP].type, packet[ICMP].code) == (3, 4), 0.3) is not None


@pytest.fixture(scope="class", params=["routed", "own"])
def some_lab(request: pytest.FixtureRequest) -> Lab:
    lab: Lab = request.getfixturevalue(f"{request.param}_lab")
    return lab


@pytest.fixture(scope="class")
def narrow_wan(some_lab: Lab) -> Iterator[Lab]:
    with mtu(some_lab, "wan", NARROW):
        yield some_lab


@pytest.fixture(scope="class")
def narrow_lan(some_lab: Lab) -> Iterator[Lab]:
    with mtu(some_lab, "lan", NARROW):
        yield some_lab


def transfer(source: socket.socket, sink: socket.socket) -> bytes:
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(source.sendall, BULK)
        received = b""
        while len(received) < len(BULK):
            received += sink.recv(1 << 20)
        sending.result()
    return received


def learns(sock: socket.socket, target: tuple[str, int]) -> None:
    """A datagram that must not be fragmented: the kernel hears of the MTU and tells the program."""
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DO)
    sock.connect(target)

    def refused() -> bool:
        try:
            sock.send(bytes(1400))
        except OSError as error:
            assert "Message too long" in str(error)
            return True
        return False

    eventually(refused, "the program is told")
    assert sock.getsockopt(socket.IPPROTO_IP, _IP_MTU) == NARROW


def arrives(send: Callable[[bytes], object], sink: socket.socket, octets: int) -> None:
    words = random.randbytes(octets)
    send(words)
    assert sink.recv(65536) == words


@pytest.mark.parametrize("local_port", [0, 4300], ids=["native", "translated"])
class TestOutbound:
    """The WAN is narrower than the LAN."""

    @pytest.fixture
    def narrow(self, narrow_wan: Lab) -> Lab:
        narrow_wan.forget_mtus()
        return narrow_wan

    def test_a_program_learns_the_mtu(self, narrow: Lab, local_port: int) -> None:
        with narrow["phone1"].socket(UDP_SOCKET, local_port) as phone:
            learns(phone, (narrow.ext, OUTSIDE))

    def test_tcp_goes_on(self, narrow: Lab, local_port: int) -> None:
        lab = narrow
        with (
            lab["ext"].socket(TCP_SOCKET, OUTSIDE, listen=True) as listener,
            lab["phone1"].socket(TCP_SOCKET, local_port) as phone,
        ):
            before = lab["router"].counter("router_fragmentation_needed")
            phone.connect((lab.ext, OUTSIDE))
            server, _ = listener.accept()
            with server:
                server.settimeout(10)
                assert transfer(phone, server) == BULK
                assert transfer(server, phone) == BULK
            assert lab["router"].counter("router_fragmentation_needed") > before

    def test_the_senders_own_fragments_are_cut(self, narrow: Lab, local_port: int) -> None:
        """The sender fragments to 1,500 octets, the router to 1,300."""
        lab = narrow
        with lab["ext"].socket(UDP_SOCKET, OUTSIDE) as outside, lab["phone1"].socket(UDP_SOCKET, local_port) as phone:
            before = lab["router"].counter("router_cut")
            arrives(lambda words: phone.sendto(words, (lab.ext, OUTSIDE)), outside, 4000)
            assert lab["router"].counter("router_cut") >= before + 2


class TestInbound:
    """The LAN is narrower than the WAN."""

    @pytest.fixture
    def narrow(self, narrow_lan: Lab) -> Lab:
        narrow_lan.forget_mtus()
        return narrow_lan

    def test_a_program_learns_the_mtu(self, narrow: Lab) -> None:
        port = narrow["phone1"].ports("ephemeral").first
        with narrow["phone1"].socket(UDP_SOCKET, port), narrow["ext"].socket(UDP_SOCKET) as outside:
            learns(outside, (narrow.external, port))

    def test_tcp_goes_on(self, narrow: Lab) -> None:
        lab = narrow
        with (
            lab["ext"].socket(TCP_SOCKET, OUTSIDE, listen=True) as listener,
            lab["phone1"].socket(TCP_SOCKET, 4301) as phone,
        ):
            before = lab["router"].counter("router_fragmentation_needed")
            phone.connect((lab.ext, OUTSIDE))
            server, _ = listener.accept()
            with server:
                phone.settimeout(10)
                assert transfer(server, phone) == BULK
            assert lab["router"].counter("router_fragmentation_needed") > before

    @pytest.mark.parametrize("octets", [1301, 1400, 1472, 4000, 9000])
    @pytest.mark.parametrize("order", ["in order", "reversed"])
    def test_what_may_be_fragmented_is_cut(self, narrow: Lab, octets: int, order: str) -> None:
        lab = narrow
        port = lab["phone1"].ports("ephemeral").first
        with lab["phone1"].socket(UDP_SOCKET, port) as phone:
            before = lab["router"].counter("router_cut")

            def send(words: bytes) -> None:
                whole = IP(src=lab.ext, dst=lab.external, id=random.randrange(65536)) / UDP(sport=9, dport=port)
                parts = [IP(bytes(part)) for part in fragment(whole / Raw(words), fragsize=1480)]
                raw.send(lab["ext"], parts if order == "in order" else parts[::-1])

            arrives(send, phone, octets)
            assert lab["router"].counter("router_cut") > before


def test_the_routers_own_connections_fit_the_lan(own_lab: Lab) -> None:
    """Packets to the router's own address go over the loopback, whose MTU is another."""
    router, phone = own_lab["router"], own_lab["phone1"]
    port = phone.request("--ports", "1")["first"]
    with phone.socket(TCP_SOCKET, port, listen=True) as listener, router.socket(TCP_SOCKET) as client:
        client.connect((own_lab.external, port))
        server, _ = listener.accept()
        with server:
            server.settimeout(10)
            assert transfer(client, server) == BULK
            assert transfer(server, client) == BULK
    with phone.socket(UDP_SOCKET, port) as server, router.socket(UDP_SOCKET) as client:
        arrives(lambda words: client.sendto(words, (own_lab.external, port)), server, 4000)
    phone.dnatctl("release", str(port))
