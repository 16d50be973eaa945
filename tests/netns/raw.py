"""Packets exactly as a test writes them: raw sockets in a node's namespace."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator

from nodes import SECONDS, Node
from scapy.layers.inet import IP
from scapy.packet import Packet

from dnat.system import netns


def send(node: Node, packets: Iterable[Packet]) -> None:
    """Send IP packets with their headers as they are, in this order, through the node's routing."""
    with netns.enter(node.namespace):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw:
        for packet in packets:
            raw.sendto(bytes(packet), (packet[IP].dst, 0))


class Icmp:
    """ICMP packets that a node's stack accepts."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw

    def wait(self, wanted: Callable[[Packet], bool], seconds: float = SECONDS) -> Packet | None:
        """The first packet that is wanted, or None."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._raw.settimeout(left)
            try:
                packet = IP(self._raw.recv(65536))
            except TimeoutError:
                return None
            if wanted(packet):
                return packet
        return None


@contextlib.contextmanager
def icmp(node: Node) -> Iterator[Icmp]:
    """Listens from the moment of entering."""
    with netns.enter(node.namespace):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with raw:
        yield Icmp(raw)


def checksums_right(packet: Packet) -> bool:
    """Whether scapy computes the same IP and ICMP checksums."""
    again = IP(bytes(packet))
    del again[IP].chksum
    layer = again[IP].payload
    if hasattr(layer, "chksum"):
        del layer.chksum
    return bytes(IP(bytes(again))) == bytes(packet)
