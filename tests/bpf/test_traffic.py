"""Real traffic through attached programs: both roles, with and without offloads, routed and on the router's
own address.
"""

from __future__ import annotations

import socket

import pytest
from bpf_bench import REMOTE
from network import OWN_PORTS, POOLS, Network
from transfer import transfer

UDP, TCP = socket.SOCK_DGRAM, socket.SOCK_STREAM
NATIVE, TRANSLATED, LISTENING = OWN_PORTS["a"].first, 4000, OWN_PORTS["b"].first
BULK = bytes(range(256)) * 8000


def seen_from(network: Network, node: str, port: int) -> set[tuple[str, int]]:
    """How others may see a socket of a host."""
    ports = [port] if port in OWN_PORTS[node] else range(POOLS[node].first, POOLS[node].last + 1)
    return {(network.external, one) for one in ports}


@pytest.mark.parametrize("port", [NATIVE, TRANSLATED], ids=["native", "translated"])
@pytest.mark.parametrize("size", [100, 4000], ids=["small", "fragmented"])
def test_udp_to_the_outside_and_back(network: Network, port: int, size: int) -> None:
    with network.socket("a", UDP, port) as host, network.socket("ext", UDP, 7777) as outside:
        host.sendto(BULK[:size], (REMOTE, 7777))
        words, sender = outside.recvfrom(65536)
        assert (words, {sender} & seen_from(network, "a", port)) == (BULK[:size], {sender})
        outside.sendto(words[::-1], sender)
        assert host.recvfrom(65536) == (BULK[:size][::-1], (REMOTE, 7777))


@pytest.mark.parametrize("port", [NATIVE, TRANSLATED], ids=["native", "translated"])
@pytest.mark.parametrize("size", [100, 4000], ids=["small", "fragmented"])
def test_udp_between_hosts_behind_one_address(network: Network, port: int, size: int) -> None:
    with network.socket("a", UDP, port) as one, network.socket("b", UDP, LISTENING) as other:
        one.sendto(BULK[:size], (network.external, LISTENING))
        words, sender = other.recvfrom(65536)
        assert (words, {sender} & seen_from(network, "a", port)) == (BULK[:size], {sender})
        other.sendto(words[::-1], sender)
        assert one.recvfrom(65536) == (BULK[:size][::-1], (network.external, LISTENING))


@pytest.mark.parametrize("port", [NATIVE, TRANSLATED], ids=["native", "translated"])
@pytest.mark.parametrize("target", ["ext", "b"])
def test_tcp_carries_bulk_both_ways(network: Network, port: int, target: str) -> None:
    there = (REMOTE, 80) if target == "ext" else (network.external, LISTENING)
    with network.socket(target, TCP, there[1]) as listener, network.socket("a", TCP, port) as client:
        listener.listen()
        client.connect(there)
        server, sender = listener.accept()
        server.settimeout(20)
        assert sender in seen_from(network, "a", port)
        with server:
            transfer(client, server, BULK)
            transfer(server, client, BULK)


def test_the_outside_calls_a_host_at_its_combination_address(network: Network) -> None:
    with network.socket("b", TCP, LISTENING) as listener, network.socket("ext", TCP, 0) as caller:
        listener.listen()
        caller.connect((network.external, LISTENING))
        connection, sender = listener.accept()
        with connection:
            assert sender[0] == REMOTE


def test_ping(network: Network) -> None:
    for _ in range(2):
        assert "1 received" in network.run("a", f"ping -c1 -W15 {REMOTE}")
        assert "1 received" in network.run("b", f"ping -c1 -W15 -s 4000 {REMOTE}")


def test_an_error_from_the_outside_reaches_the_translated_socket(network: Network) -> None:
    with network.socket("a", UDP, TRANSLATED) as host:
        host.connect((REMOTE, 9))
        host.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            host.recv(100)


def test_an_error_from_a_host_reaches_the_outside(network: Network) -> None:
    with network.socket("ext", UDP, 0) as outside:
        outside.connect((network.external, NATIVE))
        outside.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            outside.recv(100)


def test_an_error_between_hosts_behind_one_address(network: Network) -> None:
    with network.socket("a", UDP, TRANSLATED) as host:
        host.connect((network.external, LISTENING + 1))
        host.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            host.recv(100)


def test_a_host_that_sends_from_a_port_of_another_is_stopped_and_named(network: Network) -> None:
    network.detach("a", "eth0", "egress")
    try:
        with network.socket("a", UDP, LISTENING) as thief, network.socket("ext", UDP, 7777) as outside:
            thief.sendto(b"stolen", (REMOTE, 7777))
            outside.settimeout(0.3)
            with pytest.raises(TimeoutError):
                outside.recv(100)
    finally:
        network.attach_host("a")
    with network.inside("router"):
        offences = network.router.drain_offences()
    assert [(str(offence.host), offence.port) for offence in offences] == [("10.66.0.11", LISTENING)]


@pytest.mark.parametrize("port", [NATIVE, TRANSLATED], ids=["native", "translated"])
def test_a_port_that_no_host_owns_is_the_routers_if_the_address_is(network: Network, port: int) -> None:
    with network.socket("a", UDP, port) as host, network.socket("router", UDP, 53) as router:
        host.sendto(b"name?", (network.external, 53))
        if not network.own:
            router.settimeout(0.3)
            with pytest.raises(TimeoutError):
                router.recvfrom(100)
            return
        words, sender = router.recvfrom(100)
        assert sender in seen_from(network, "a", port)
        router.sendto(words, sender)
        assert host.recvfrom(100) == (b"name?", (network.external, 53))
