"""A host's packets with a checksum that looks like one which a device is to complete, though it is whole; and packets
that stand for several segments.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from bpf_bench import EXTERNAL, PASS, REMOTE, Case, HostBench, error, tcp, udp
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from dnat.types import Protocol

Build = Callable[..., Packet]
_GSO_SIZE_AT = 176
"""Octets of ``struct __sk_buff`` before ``gso_size``."""
DIRECTIONS = [("host_out", True), ("host_in", False)]
PROTOCOLS = [(Protocol.UDP, udp), (Protocol.TCP, tcp)]


def pair(build: Build, outward: bool, tail: bytes = b"") -> tuple[Packet, Packet]:
    """A packet of the binding 4000 to 30002 before and after the program."""
    if outward:
        return build(4000, 7) / tail, build(30002, 7) / tail
    ends = {"src": REMOTE, "dst": EXTERNAL}
    return build(7, 30002, **ends) / tail, build(7, 4000, **ends) / tail


def transport(packet: Packet) -> Packet:
    """Its TCP or UDP, checksum included."""
    built = Ether(bytes(packet))
    return built[TCP] if TCP in built else built[UDP]


def begun(packet: Packet) -> int:
    """The sum of its pseudo header, modulo 65,535."""
    ip = Ether(bytes(packet))[IP]
    return (sum(struct.unpack("!4H", bytes(ip)[12:20])) + ip.proto + ip.len - 20) % 0xFFFF


@pytest.mark.parametrize(("program", "outward"), DIRECTIONS)
@pytest.mark.parametrize(("protocol", "build"), PROTOCOLS)
def test_a_whole_checksum_that_looks_begun(
    host: HostBench, protocol: Protocol, build: Build, program: str, outward: bool
) -> None:
    without, _ = pair(build, outward, bytes(2 + len(build(4000, 7)) % 2))
    missing = (transport(without).chksum - begun(without)) % 0xFFFF
    tail = bytes(len(build(4000, 7)) % 2) + missing.to_bytes(2, "big")
    sent, leaves = pair(build, outward, tail)
    assert transport(sent).chksum % 0xFFFF == begun(sent)
    host.check(
        program,
        Case(
            "looks begun",
            sent,
            PASS,
            f"{program}_translated",
            leaves,
            bindings={(protocol, 4000): 30002},
        ),
    )


@pytest.mark.parametrize(("program", "outward"), DIRECTIONS)
@pytest.mark.parametrize(("protocol", "build"), PROTOCOLS)
@pytest.mark.parametrize("length", [None, 0], ids=["", "longer than its header can say"])
def test_a_packet_of_several_segments(
    host: HostBench, length: int | None, protocol: Protocol, build: Build, program: str, outward: bool
) -> None:
    host.bind(protocol, 4000, 30002)
    sent, leaves = pair(build, outward, bytes(3000))
    sent[IP].len = leaves[IP].len = length
    context = bytes(_GSO_SIZE_AT) + struct.pack("=I", 1000)
    outcome = host.run(program, sent, context)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(leaves))
    assert outcome.counted == {f"{program}_translated": 1}


@pytest.mark.parametrize("octets", [28, 36, 38])
def test_a_frame_that_goes_on_behind_an_error(host: HostBench, octets: int) -> None:
    """What is there is no checksum, were it at the place of the one that the quote has no room for."""
    ends = {"src": REMOTE, "dst": EXTERNAL}
    host.bind(Protocol.TCP, 4000, 30002)
    behind = bytes(range(1, 33))
    sent, leaves = (bytes(error(tcp(port, 80), **ends, octets=octets)) for port in (30002, 4000))
    outcome = host.run("host_in", sent + behind)
    assert (outcome.verdict, outcome.packet) == (PASS, leaves + behind)


def test_an_error_whose_quote_lies_behind_the_packet(host: HostBench) -> None:
    host.bind(Protocol.TCP, 4000, 30002)
    sent = Ether(bytes(error(tcp(30002, 80), src=REMOTE, dst=EXTERNAL)))
    sent[IP].len = 20 + 8 + 20
    outcome = host.run("host_in", sent)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(sent))
    assert outcome.counted == {"host_in_native": 1}
