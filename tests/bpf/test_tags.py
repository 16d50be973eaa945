"""Frames with tags of IEEE 802.1Q and 802.1ad on an interface without one: whose they are; they hide nothing."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_bench import REMOTE
from network import OWN_PORTS, Network
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

UDP_SOCKET, RAW = socket.SOCK_DGRAM, socket.SOCK_RAW
NATIVE = OWN_PORTS["a"].first
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_AUXDATA, _PACKET_QDISC_BYPASS = 263, 8, 20
_VLAN_VALID = 1 << 4
"""TP_STATUS_VLAN_VALID."""


@pytest.fixture(scope="module")
def network(address: str, node_pins: dict[str, Path]) -> Iterator[Network]:
    built = Network(own=address == "own")
    try:
        built.start(node_pins)
        yield built
    finally:
        built.close()


@contextlib.contextmanager
def frames_of(network: Network, node: str) -> Iterator[tuple[socket.socket, Ether]]:
    """A socket for whole frames of the router's neighbour, and the header of a frame from it to the router."""
    towards = "wan" if node == "ext" else "lan"
    with network.inside(node):
        frames = socket.socket(socket.AF_PACKET, RAW)
    with frames:
        # Straight to the driver, past the node's own programs.
        frames.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        frames.bind(("eth0", 0))
        yield frames, Ether(src=network.link(node, "eth0"), dst=network.link("router", towards))


TAGGED = pytest.mark.parametrize(
    "tags",
    [Dot1Q(vlan=20), Dot1AD(vlan=20) / Dot1Q(vlan=0), Dot1Q(vlan=0) / Dot1Q(vlan=20), Dot1AD(vlan=0) / Dot1Q(vlan=30)],
    ids=["number", "two tags", "number behind a priority", "number behind a priority of a provider"],
)
PRIORITIES = pytest.mark.parametrize(
    "tags",
    [Dot1Q(vlan=0, prio=5), Dot1AD(vlan=0), Dot1Q(vlan=0) / Dot1Q(vlan=0, prio=7)],
    ids=["priority", "priority of a provider", "two priorities"],
)


@TAGGED
def test_tagged_frames_on_an_untagged_interface_are_others(network: Network, tags: Packet) -> None:
    """Whoever wants the tag's network has an interface of its own for it."""
    packet = IP(src=REMOTE, dst=network.external) / UDP(sport=9, dport=NATIVE) / Raw(b"tagged")
    with frames_of(network, "ext") as (frames, ethernet), network.socket("a", UDP_SOCKET, NATIVE) as host:
        before = network.router.counters()
        frames.send(bytes(ethernet / tags.copy() / packet))
        frames.send(bytes(ethernet / packet))
        assert host.recv(100) == b"tagged"
        after = network.router.counters()
        assert after["router_in"] == before["router_in"] + 1
        host.settimeout(0.2)
        with pytest.raises(TimeoutError):
            host.recv(100)


@PRIORITIES
def test_a_tag_without_a_number_is_only_a_priority(network: Network, tags: Packet) -> None:
    """IEEE 802.1Q: such frames are of the untagged network. Phones send them; what goes on has no tag."""
    inward = IP(src=REMOTE, dst=network.external) / UDP(sport=7777, dport=NATIVE) / Raw(b"inward")
    outward = IP(src=network.external, dst=REMOTE) / UDP(sport=NATIVE, dport=7777) / Raw(b"outward")
    with network.socket("a", UDP_SOCKET, NATIVE) as host, frames_of(network, "ext") as (frames, ethernet):
        frames.send(bytes(ethernet / tags.copy() / inward))
        assert host.recv(100) == b"inward"
    with network.inside("ext"):
        seen = socket.socket(socket.AF_PACKET, RAW, socket.htons(_ETH_P_ALL))
    with seen, frames_of(network, "a") as (frames, ethernet):
        seen.bind(("eth0", _ETH_P_ALL))
        seen.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        seen.settimeout(20)
        frames.send(bytes(ethernet / tags.copy() / outward))
        frame, was_tagged = b"", True
        while b"outward" not in frame:
            frame, ((_, _, auxiliary),), _, _ = seen.recvmsg(2000, 100)
            was_tagged = bool(int.from_bytes(auxiliary[:4], sys.byteorder) & _VLAN_VALID)
        assert (frame[12:14], was_tagged) == (b"\x08\0", False)


@PRIORITIES
def test_a_priority_does_not_hide_a_thief(network: Network, tags: Packet) -> None:
    stolen = IP(src=network.external, dst=REMOTE) / UDP(sport=OWN_PORTS["b"].first, dport=7777) / Raw(b"stolen")
    with network.socket("ext", UDP_SOCKET, 7777) as outside, frames_of(network, "a") as (frames, ethernet):
        before = network.router.counters()["drop_not_owner"]
        frames.send(bytes(ethernet / tags.copy() / stolen))
        outside.settimeout(0.3)
        with pytest.raises(TimeoutError):
            outside.recv(100)
        assert network.router.counters()["drop_not_owner"] == before + 1
    with network.inside("router"):
        network.router.drain_offences()
