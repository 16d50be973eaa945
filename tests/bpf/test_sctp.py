"""Associations of the kernel's own SCTP: over leased ports in every direction, and none over others."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from bpf_bench import REMOTE
from network import OWN_PORTS, Network

PORTS = {"a": OWN_PORTS["a"].first, "b": OWN_PORTS["b"].first, "ext": 7777}
MESSAGES = [bytes([number]) * size for number in range(100) for size in (1, 4000)]
"""Small ones share a packet, large ones fill several, and several packets go as one through the interfaces."""


def opened(network: Network, node: str, port: int) -> socket.socket:
    """A socket of one address, as an association tells the other end all that it has."""
    address = REMOTE if node == "ext" else network.external
    return network.socket(node, socket.SOCK_STREAM, port, address, socket.IPPROTO_SCTP)


def carry(source: socket.socket, sink: socket.socket) -> None:
    """Messages arrive whole and in order."""
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: [source.send(message) for message in MESSAGES])
        assert [sink.recv(10000) for _ in MESSAGES] == MESSAGES
        sending.result()


@pytest.mark.parametrize(("client", "server"), [("a", "ext"), ("ext", "a"), ("b", "a")])
def test_an_association_over_leased_ports(network: Network, client: str, server: str) -> None:
    with opened(network, server, PORTS[server]) as listening, opened(network, client, PORTS[client]) as near:
        listening.listen(1)
        near.connect(listening.getsockname())
        far, sender = listening.accept()
        with far:
            far.settimeout(20)
            assert sender == near.getsockname()
            carry(near, far)
            carry(far, near)
            for node in (client, server):
                assert "SctpChecksumErrors 0" in " ".join(network.run(node, "cat /proc/net/sctp/snmp").split())


def test_no_association_over_a_port_that_is_not_leased(network: Network) -> None:
    with opened(network, "ext", PORTS["ext"]) as listening, opened(network, "a", 4000) as near:
        listening.listen(1)
        before = network.host_counter("a", "drop_not_translatable")
        near.settimeout(1)
        with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
            near.connect(listening.getsockname())
        assert network.host_counter("a", "drop_not_translatable") > before
