"""TCP whose packets inside the machine are longer than an IP header can say (BIG TCP, Linux 6.3)."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest
from nodes import Lab, Node
from transfer import transfer

from dnat.system import netns

TCP = socket.SOCK_STREAM
BULK = bytes(range(256)) * 40_000
_RTM_NEWLINK, _REQUEST_WITH_ACK = 16, 5
_SIZES = 63, 64
"""IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE; neither pyroute2 nor older iproute2 know them."""
_USUAL, _BIG = 65536, 180_000


def _set_sizes(node: Node, octets: int) -> None:
    """Of all cables of a node. Raises OSError."""
    with netns.enter(node.namespace), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        attributes = b"".join(struct.pack("=HHI", 8, kind, octets) for kind in _SIZES)
        for index, name in socket.if_nameindex():
            if name == "lo":
                continue
            body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0) + attributes
            netlink.send(struct.pack("=IHHII", 16 + len(body), _RTM_NEWLINK, _REQUEST_WITH_ACK, 1, 0) + body)
            (error,) = struct.unpack_from("=i", netlink.recv(4096), 16)
            if error:
                raise OSError(-error, f"{name}: GSO size")


@pytest.fixture
def big_lab(routed_lab: Lab) -> Iterator[Lab]:
    nodes = [routed_lab[name] for name in ("phone1", "phone2", "router", "ext")]
    with contextlib.ExitStack() as stack:
        for node in nodes:
            stack.callback(_set_sizes, node, _USUAL)
            _set_sizes(node, _BIG)
        yield routed_lab


@pytest.mark.parametrize("local_port", [0, 4011], ids=["native", "translated"])
def test_bulk_in_big_packets(big_lab: Lab, local_port: int) -> None:
    phone, ext = big_lab["phone1"], big_lab["ext"]
    with ext.socket(TCP, 5611, listen=True) as listener, phone.socket(TCP, local_port) as client:
        client.connect((big_lab.ext, 5611))
        server, _ = listener.accept()
        with server:
            for source, sink in ((client, server), (server, client)):
                sink.settimeout(30)
                transfer(source, sink, BULK)
