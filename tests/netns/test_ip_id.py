"""Hosts that share an address never share an IP identification (RFC 6864): their fragments do not mix."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from nodes import Lab, Node
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from dnat.types import PortRange

DATAGRAM = socket.SOCK_DGRAM
SAME = 4711


def own_ports(phone: Node) -> set[int]:
    leases = phone.call("show")["leases"]
    ranges = [PortRange(lease["first"], lease["last"]) for lease in leases]
    return {port for ports in ranges for port in range(ports.first, ports.last + 1)}


def fragments(lab: Lab, port: int, word: bytes) -> list[bytes]:
    """A datagram of 1,600 octets in two fragments."""
    whole = bytes(UDP(sport=port, dport=7777, len=1608, chksum=0)) + word * 400
    header = {"src": lab.external, "dst": lab.ext, "proto": 17, "id": SAME}
    first = IP(**header, flags="MF") / Raw(whole[:808])
    return [bytes(first), bytes(IP(**header, frag=101) / Raw(whole[808:]))]


def test_datagrams_with_the_same_identification_are_put_together_right(lab: Lab) -> None:
    """Without the data plane's doing, both would go into one queue at the receiver."""
    one, two = lab["phone1"], lab["phone2"]
    ports = {phone.name: phone.ports("ephemeral").first for phone in (one, two)}
    words = {one.name: b"once", two.name: b"twos"}
    with lab["ext"].socket(DATAGRAM, 7777) as outside, one.raw_socket() as from_one, two.raw_socket() as from_two:
        for raw, phone, number in ((from_one, one, 0), (from_two, two, 0), (from_two, two, 1), (from_one, one, 1)):
            raw.sendto(fragments(lab, ports[phone.name], words[phone.name])[number], (lab.ext, 0))
        received = {sender: data for data, sender in (outside.recvfrom(2000) for _ in range(2))}
    assert received == {(lab.external, ports[name]): word * 400 for name, word in words.items()}


def test_the_kernels_own_fragments_leave_with_identifications_of_the_hosts_own(lab: Lab) -> None:
    ext, phones = lab["ext"], [lab["phone1"], lab["phone2"]]
    seen: dict[str, list[int]] = {phone.name: [] for phone in phones}
    eth_p_ip, head = 0x0800, 14
    with ExitStack() as stack:
        listener = stack.enter_context(ext.socket(DATAGRAM, 7777))
        wire = stack.enter_context(ext.packet_socket(eth_p_ip))
        for phone in phones:
            with phone.socket(DATAGRAM) as native, phone.socket(DATAGRAM, 4300) as translated:
                for number in range(20):
                    for sock in (native, translated):
                        sock.sendto(bytes([number]) * 4000, (lab.ext, 7777))
                        assert listener.recvfrom(5000)[0] == bytes([number]) * 4000
                        numbers = {wire.recv(2000)[head:][4:6] for _ in range(3)}
                        assert len(numbers) == 1, "all fragments of a datagram have the same"
                        seen[phone.name].append(int.from_bytes(numbers.pop()))
    shares = {phone.name: own_ports(phone) for phone in phones}
    assert not shares["phone1"] & shares["phone2"]
    for name, numbers in seen.items():
        assert set(numbers) <= shares[name]
        assert len(set(numbers)) == len(numbers) == 40, "every datagram has a number of its own"


def test_atomic_packets_are_left_alone(routed_lab: Lab) -> None:
    """A datagram that fits, with DF: what the kernel put there arrives."""
    lab, phone = routed_lab, routed_lab["phone1"]
    before = phone.counter("host_id_replaced")
    with phone.socket(DATAGRAM) as sock, lab["ext"].socket(DATAGRAM, 7777) as outside:
        sock.sendto(b"x" * 1000, (lab.ext, 7777))
        outside.recv(2000)
    assert phone.counter("host_id_replaced") == before
