"""ICMP through and from the router: traceroute from both sides, queries, errors about hosts' packets."""

from __future__ import annotations

import socket

import pytest
import raw
from error_queue import Told, listen_for_errors, told, told_now
from nodes import SILENCE, Lab, Node, eventually
from scapy.layers.inet import ICMP, IP, UDP, ICMPerror, IPerror, IPOption, UDPerror
from scapy.packet import Packet, Raw

UDP_SOCKET, TCP_SOCKET = socket.SOCK_DGRAM, socket.SOCK_STREAM
ROUTER_LAN, ROUTER_WAN = "10.66.0.1", "203.0.113.1"
TRACED = 33434


def ask(sock: socket.socket, target: tuple[str, int], ttl: int, size: int = 20) -> Told:
    """Send one datagram and wait for the error about it (as traceroute does)."""
    listen_for_errors(sock)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    sock.sendto(bytes(size), target)
    return told(sock)


@pytest.mark.parametrize("local_port", [0, 4200], ids=["native", "translated"])
@pytest.mark.parametrize("size", [20, 1472, 3000], ids=["small", "large", "fragmented"])
def test_traceroute_from_a_host(lab: Lab, local_port: int, size: int) -> None:
    with lab["phone1"].socket(UDP_SOCKET, local_port) as sock:
        assert ask(sock, (lab.ext, TRACED), 1, size) == Told(ROUTER_LAN, 11, 0)
    with lab["phone1"].socket(UDP_SOCKET, local_port) as sock:
        assert ask(sock, (lab.ext, TRACED), 2, size) == Told(lab.ext, 3, 3)


def test_traceroute_of_two_hosts_at_once(lab: Lab) -> None:
    """The same local port on two hosts behind one address: each is told about its own."""
    with lab["phone1"].socket(UDP_SOCKET, 4201) as one, lab["phone2"].socket(UDP_SOCKET, 4201) as two:
        listen_for_errors(two)
        assert ask(one, (lab.ext, TRACED), 1) == Told(ROUTER_LAN, 11, 0)
        assert told_now(two) is None
        assert ask(two, (lab.ext, TRACED), 1) == Told(ROUTER_LAN, 11, 0)
        assert told_now(one) is None


def test_traceroute_to_a_host(lab: Lab) -> None:
    """From outside, the router is its WAN address, and the host the shared one."""
    phone = lab["phone1"]
    port = phone.request("--ports", "1")["first"]
    with lab["ext"].socket(UDP_SOCKET) as sock:
        assert ask(sock, (lab.external, port), 1) == Told(ROUTER_WAN, 11, 0)
    with lab["ext"].socket(UDP_SOCKET) as sock:
        assert ask(sock, (lab.external, port), 2) == Told(lab.external, 3, 3)
    phone.dnatctl("release", str(port))


def test_traceroute_between_hosts_behind_one_address(lab: Lab) -> None:
    other = lab["phone2"]
    port = other.request("--ports", "1")["first"]
    with lab["phone1"].socket(UDP_SOCKET, 4202) as sock:
        assert ask(sock, (lab.external, port), 1) == Told(ROUTER_LAN, 11, 0)
    with lab["phone1"].socket(UDP_SOCKET, 4202) as sock:
        assert ask(sock, (lab.external, port), 2) == Told(lab.external, 3, 3)
    other.dnatctl("release", str(port))


def test_ping_with_a_short_life(lab: Lab) -> None:
    """mtr's way: echo requests with a rising TTL."""
    done = lab["phone1"].run("ping", "-n", "-c", "1", "-W", "15", "-t", "1", lab.ext, code=None)
    assert "Time to live exceeded" in done.stdout and f"From {ROUTER_LAN}" in done.stdout
    done = lab["phone1"].run("ping", "-n", "-c", "1", "-W", "15", "-t", "2", lab.ext)
    assert "1 received" in done.stdout


def test_tcp_with_a_short_life(lab: Lab) -> None:
    """On a packet whose checksum the device was to complete."""
    phone = lab["phone1"]
    for local_port in (0, 4203):
        with raw.icmp(phone) as heard, phone.socket(TCP_SOCKET, local_port) as sock:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            # Then the kernel tells the connection at once, instead of trying on.
            listen_for_errors(sock)
            with pytest.raises(OSError, match="No route to host"):
                sock.connect((lab.ext, 80))
            told = heard.wait(lambda packet: packet[ICMP].type == 11 and packet.src == ROUTER_LAN)
            assert told is not None
            assert (told[IPerror].dst, told[IPerror].src) == (lab.ext, lab.external)


def test_the_routers_errors_are_well_formed(lab: Lab) -> None:
    """Header, checksums, what is quoted (RFC 1812, section 4.3.2)."""
    phone, ext = lab["phone1"], lab["ext"]
    port = phone.request("--ports", "1")["first"]
    for options in ([], [IPOption(b"\x94\x04\x00\x00")]):
        sent = IP(src=lab.ext, dst=lab.external, ttl=1, id=77, options=options)
        sent = IP(bytes(sent / UDP(sport=9, dport=port) / Raw(bytes(1000))))
        with raw.icmp(ext) as heard:
            raw.send(ext, [sent])
            told = heard.wait(lambda packet: packet[ICMP].type == 11)
        assert told is not None and raw.checksums_right(told)
        assert (told.src, told.dst, told.len, told.tos) == (ROUTER_WAN, lab.ext, 576, 0xC0)
        assert told.original[28:] == bytes(sent)[:548]
    phone.dnatctl("release", str(port))


def no_answer(lab: Lab, packet: Packet) -> None:
    router = lab["router"]
    before = router.counter("router_error_unsent")
    with raw.icmp(lab["ext"]) as heard:
        raw.send(lab["ext"], [packet])
        eventually(lambda: router.counter("router_error_unsent") == before + 1, "no answer is counted")
        assert heard.wait(lambda packet: packet[ICMP].type == 11, SILENCE) is None


def test_no_errors_about_errors(lab: Lab) -> None:
    phone = lab["phone1"]
    port = phone.request("--ports", "1")["first"]
    quoted = IP(src=lab.external, dst=lab.ext) / UDP(sport=port, dport=9)
    no_answer(lab, IP(src=lab.ext, dst=lab.external, ttl=1) / ICMP(type=3, code=1) / Raw(bytes(quoted)))
    phone.dnatctl("release", str(port))


OPTION = [IPOption(b"\x94\x04\x00\x00")]


@pytest.mark.parametrize("local_port", [0, 4204], ids=["native", "translated"])
@pytest.mark.parametrize("outer", [[], OPTION], ids=["plain", "options"])
@pytest.mark.parametrize("inner", [[], OPTION], ids=["plain quoted", "options quoted"])
@pytest.mark.parametrize("octets", [8, None], ids=["eight octets", "whole"])
def test_errors_of_the_outside_reach_the_socket(
    lab: Lab, local_port: int, outer: list[IPOption], inner: list[IPOption], octets: int | None
) -> None:
    """From any hop on the way, with or without options, with as little as eight octets quoted."""
    ext = lab["ext"]
    with lab["phone1"].socket(UDP_SOCKET, local_port) as sock, ext.socket(UDP_SOCKET, 9001) as outside:
        listen_for_errors(sock)
        sock.sendto(b"what is on the way?", (lab.ext, 9001))
        data, seen = outside.recvfrom(100)
        quoted = IP(src=seen[0], dst=lab.ext, options=inner) / UDP(sport=seen[1], dport=9001) / Raw(data)
        length = None if octets is None else len(bytes(quoted)) - 8 - len(data) + octets
        error = IP(src=lab.ext, dst=lab.external, options=outer) / ICMP(type=3, code=1)
        raw.send(ext, [error / Raw(bytes(quoted)[:length])])
        assert told(sock) == Told(lab.ext, 3, 1)


def test_errors_never_end_a_binding(lab: Lab) -> None:
    """RFC 5508, REQ-6: the translation lives on."""
    ext = lab["ext"]
    with lab["phone1"].socket(UDP_SOCKET, 4205) as sock, ext.socket(UDP_SOCKET, 9002) as outside:
        sock.sendto(b"1", (lab.ext, 9002))
        _, seen = outside.recvfrom(100)
        quoted = IP(src=seen[0], dst=lab.ext) / UDP(sport=seen[1], dport=9002) / Raw(b"1")
        for code in range(16):
            raw.send(ext, [IP(src=lab.ext, dst=lab.external) / ICMP(type=3, code=code) / Raw(bytes(quoted))])
        outside.sendto(b"2", seen)
        assert _eventually_receives(sock) == b"2"
    # One of the codes was about the MTU.
    lab.forget_mtus()


def _eventually_receives(sock: socket.socket) -> bytes:
    for _ in range(20):
        try:
            return sock.recv(100)
        except OSError:
            continue
    pytest.fail("nothing received")


def test_an_error_of_a_host_names_the_port_that_was_asked(lab: Lab) -> None:
    """Outbound errors speak about the packet as the outside sent it."""
    phone, ext = lab["phone1"], lab["ext"]
    with phone.socket(UDP_SOCKET, 4206) as sock, ext.socket(UDP_SOCKET, 9003) as outside:
        sock.sendto(b"1", (lab.ext, 9003))
        _, seen = outside.recvfrom(100)
    with raw.icmp(ext) as heard:
        raw.send(ext, [IP(src=lab.ext, dst=lab.external) / UDP(sport=9003, dport=seen[1]) / Raw(b"gone?")])
        told = heard.wait(lambda packet: packet[ICMP].type == 3)
    assert told is not None and raw.checksums_right(told)
    assert (told.src, told[UDPerror].sport, told[UDPerror].dport) == (lab.external, 9003, seen[1])
    # Also the quoted header is as it was sent.
    quoted = IP(bytes(told[ICMP].payload))
    assert quoted[IP].dst == lab.external and UDP in quoted


def test_a_quoted_ping_is_mapped_back(lab: Lab) -> None:
    """An error about an echo request: the identifier of the host comes back (RFC 5508, REQ-4)."""
    phone, ext = lab["phone1"], lab["ext"]
    with raw.icmp(ext) as outside, raw.icmp(phone) as heard:
        raw.send(phone, [IP(src=lab.external, dst=lab.ext) / ICMP(id=77, seq=5) / Raw(b"mapped")])
        request = outside.wait(lambda packet: packet[ICMP].type == 8 and packet[ICMP].seq == 5)
        assert request is not None
        error = IP(src=lab.ext, dst=lab.external) / ICMP(type=11) / Raw(bytes(request)[:28])
        raw.send(ext, [error])
        told = heard.wait(lambda packet: packet[ICMP].type == 11)
        assert told is not None and told[ICMPerror].id == 77 and raw.checksums_right(told)


def test_timestamp_queries(lab: Lab) -> None:
    """RFC 5508, REQ-1: also of this kind, and each host gets its own answer."""
    for name, identifier in (("phone1", 78), ("phone2", 78)):
        node = lab[name]
        with raw.icmp(node) as heard:
            raw.send(node, [IP(src=lab.external, dst=lab.ext) / ICMP(type=13, id=identifier, seq=6)])
            answer = heard.wait(lambda packet: packet[ICMP].type == 14)
            assert answer is not None and (answer[ICMP].id, answer[ICMP].seq) == (identifier, 6)


def unmapped(node: Node, lab: Lab, packet: Packet) -> None:
    before = lab["router"].counter("drop_error_unmapped")
    raw.send(node, [packet])
    eventually(lambda: lab["router"].counter("drop_error_unmapped") == before + 1, "it is dropped and counted")


def test_errors_about_later_fragments_cannot_be_mapped(routed_lab: Lab) -> None:
    lab = routed_lab
    quoted = IP(src=lab.external, dst=lab.ext, frag=185, proto=17) / Raw(bytes(20))
    unmapped(lab["ext"], lab, IP(src=lab.ext, dst=lab.external) / ICMP(type=11, code=1) / Raw(bytes(quoted)))


def test_an_error_between_hosts_behind_one_address(lab: Lab) -> None:
    """RFC 5508, REQ-7: hairpinned errors, here for TCP's neighbour: a closed UDP port."""
    other = lab["phone2"]
    port = other.request("--ports", "1")["first"]
    for local_port in (0, 4207):
        with lab["phone1"].socket(UDP_SOCKET, local_port) as sock:
            assert ask(sock, (lab.external, port), 64) == Told(lab.external, 3, 3)
    other.dnatctl("release", str(port))
