"""Kinds of packets that are rare: no checksum, UDP-Lite, SCTP and DCCP, options of IP, and packets whose
checksum the device is to complete.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from bpf_bench import REMOTE, ROUTER
from network import OWN_PORTS, Network
from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Packet, Raw
from transfer import transfer

UDP_SOCKET, TCP_SOCKET, RAW = socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_RAW
NATIVE, TRANSLATED = OWN_PORTS["a"].first, 4000
BULK = bytes(range(256)) * 4000
PORTS = pytest.mark.parametrize("port", [NATIVE, TRANSLATED], ids=["native", "translated"])
_IP_RECVERR, _SO_NO_CHECK, _UDPLITE = 11, 11, 136


@contextlib.contextmanager
def raw_socket(network: Network, node: str, protocol: int) -> Iterator[socket.socket]:
    with network.inside(node):
        opened = socket.socket(socket.AF_INET, RAW, protocol)
    with opened:
        opened.settimeout(20)
        yield opened


def send(network: Network, node: str, packet: Packet) -> None:
    with raw_socket(network, node, socket.IPPROTO_RAW) as opened:
        opened.sendto(bytes(packet), (packet[IP].dst, 0))


def received(opened: socket.socket, words: bytes) -> Packet:
    """The first packet with these words in it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        octets = opened.recv(65536)
        if words in octets:
            return IP(octets)
    pytest.fail("nothing came")


@PORTS
def test_udp_without_a_checksum(network: Network, port: int) -> None:
    with network.socket("a", UDP_SOCKET, port) as host, network.socket("ext", UDP_SOCKET, 7777) as outside:
        host.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
        with raw_socket(network, "ext", socket.IPPROTO_UDP) as seen:
            host.sendto(b"unchecked", (REMOTE, 7777))
            assert received(seen, b"unchecked")[UDP].chksum == 0
        _, sender = outside.recvfrom(100)
        outside.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
        outside.sendto(b"back", sender)
        assert host.recvfrom(100) == (b"back", (REMOTE, 7777))


@PORTS
def test_udplite(network: Network, port: int) -> None:
    """Its checksum covers what the sender says; here, by raw sockets, the header alone."""
    source = network.external
    header = struct.pack("!4H", port, 7778, 8, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(REMOTE) + struct.pack("!BBH", 0, _UDPLITE, 8 + 6)
    header = header[:6] + struct.pack("!H", _checksum(pseudo + header))
    with raw_socket(network, "ext", _UDPLITE) as seen:
        send(network, "a", IP(src=source, dst=REMOTE, proto=_UDPLITE) / Raw(header + b"lively"))
        packet = received(seen, b"lively")
    payload = bytes(packet.payload)
    (seen_port,) = struct.unpack_from("!H", payload)
    assert (seen_port == port) == (port == NATIVE)
    assert _checksum(pseudo + payload[:8]) in (0, 0xFFFF)


def _checksum(octets: bytes) -> int:
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@pytest.mark.parametrize("protocol", [132, 33], ids=["sctp", "dccp"])
def test_protocols_that_are_never_translated(network: Network, protocol: int) -> None:
    def packet(port: int, words: bytes) -> Packet:
        header = struct.pack("!2H", port, 9) + bytes(12)
        return IP(src=network.external, dst=REMOTE, proto=protocol) / Raw(header + words)

    with raw_socket(network, "ext", protocol) as seen:
        refused = network.host_counter("a", "drop_not_translatable")
        # Dropped on the way out; the kernel may tell the sender.
        with contextlib.suppress(OSError):
            send(network, "a", packet(TRANSLATED, b"not leased"))
        assert network.host_counter("a", "drop_not_translatable") == refused + 1
        send(network, "a", packet(NATIVE, b"leased"))
        assert received(seen, b"leased").src == network.external
    with raw_socket(network, "a", protocol) as seen:
        header = struct.pack("!2H", 9, NATIVE) + bytes(12)
        send(network, "ext", IP(src=REMOTE, dst=network.external, proto=protocol) / Raw(header + b"back"))
        assert received(seen, b"back").src == REMOTE


@PORTS
def test_options_of_ip(network: Network, port: int) -> None:
    """Router alert, in both directions."""
    with network.socket("a", UDP_SOCKET, port) as host, network.socket("ext", UDP_SOCKET, 7777) as outside:
        for one in (host, outside):
            one.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x94\x04\x00\x00")
        host.sendto(b"alert", (REMOTE, 7777))
        words, sender = outside.recvfrom(100)
        outside.sendto(words, sender)
        assert host.recvfrom(100) == (b"alert", (REMOTE, 7777))


@contextlib.contextmanager
def completing(network: Network, interface: str) -> Iterator[None]:
    """The interface completes no checksums: the kernel does, before the packet leaves."""
    network.run("router", f"ethtool -K {interface} tx off")
    try:
        yield
    finally:
        if network.offloads:
            network.run("router", f"ethtool -K {interface} tx on")


def connect_error(client: socket.socket, target: tuple[str, int]) -> int:
    """Why a connection is not made; 0: it is."""
    try:
        client.connect(target)
    except OSError as error:
        return error.errno or 0
    # With IP_RECVERR the kernel wakes who waits for the socket a moment before it says why, on another CPU.
    limit = time.monotonic() + 5
    while not (error_number := client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) and time.monotonic() < limit:
        pass
    return error_number


@PORTS
def test_an_error_about_a_packet_without_its_checksum_yet(network: Network, port: int) -> None:
    """The receiver checks the error's own checksum, which covers the one that is written last of all."""
    with completing(network, "lan"), network.socket("a", TCP_SOCKET, port) as host:
        host.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        host.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        assert connect_error(host, (REMOTE, 81)) == errno.EHOSTUNREACH
    with completing(network, "wan"), network.socket("ext", TCP_SOCKET, 0) as outside:
        outside.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        outside.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        assert connect_error(outside, (network.external, NATIVE + 1)) == errno.EHOSTUNREACH


@PORTS
@pytest.mark.parametrize("size", [100, 1001])
def test_an_error_about_a_datagram_without_its_checksum_yet(network: Network, port: int, size: int) -> None:
    with completing(network, "lan"), network.socket("a", UDP_SOCKET, port) as host:
        host.connect((REMOTE, 7777))
        host.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        host.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        host.send(BULK[:size])
        with pytest.raises(OSError, match="No route to host"):
            host.recv(100)


@PORTS
def test_segments_that_do_not_fit_the_way_out(network: Network, port: int) -> None:
    """Large packets of TCP that stand for many, towards a narrower link."""
    narrow = network.mtu - 200
    network.run("a", "ip route flush cache")
    network.run("router", f"ip link set wan mtu {narrow}")
    network.configure_router()
    try:
        before = network.router.counters()["router_fragmentation_needed"]
        with completing(network, "lan"), network.socket("ext", TCP_SOCKET, 82) as listener:
            listener.listen()
            with network.socket("a", TCP_SOCKET, port) as host:
                host.connect((REMOTE, 82))
                server, _ = listener.accept()
                with server:
                    server.settimeout(20)
                    transfer(host, server, BULK)
        assert network.router.counters()["router_fragmentation_needed"] > before
    finally:
        network.run("router", f"ip link set wan mtu {network.mtu}")
        network.configure_router()
        network.run("a", "ip route flush cache")


def test_the_router_names_itself_to_hosts(network: Network) -> None:
    with raw_socket(network, "a", socket.IPPROTO_ICMP) as heard, network.socket("a", UDP_SOCKET, NATIVE) as host:
        host.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        host.sendto(b"how far?", (REMOTE, 7777))
        told = received(heard, b"how far?")
        assert (told.src, told[ICMP].type) == (ROUTER, 11)
