"""How ports are drawn from the pool, what happens when they run out, and who is told."""

from __future__ import annotations

import socket

import pytest
from bpf_bench import DROP, EXTERNAL, PASS, POOL, REDIRECT, REMOTE, Case, HostBench, echo, error, refusal, tcp, udp
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from dnat.dataplane import abi
from dnat.dataplane.host import Policy, PoolEvent
from dnat.types import PortRange, Protocol

FULL = {(Protocol.UDP, 5000 + number): port for number, port in enumerate(range(POOL.first, POOL.last + 1))}


def drawn(host: HostBench, local_port: int) -> int:
    outcome = host.run("host_out", udp(local_port, 53))
    assert outcome.verdict == PASS, outcome
    return int(Ether(outcome.packet)[UDP].sport)


@pytest.mark.parametrize("ports", [PortRange(30000, 30127), PortRange(30007, 30994), PortRange(30000, 32047)], ids=str)
def test_every_port_of_a_large_pool_is_drawn_before_it_counts_as_exhausted(host: HostBench, ports: PortRange) -> None:
    host.plane.set_ports([], [(ports, Protocol.UDP)])
    assert {drawn(host, 1024 + number) for number in range(len(ports))} == set(range(ports.first, ports.last + 1))
    assert host.run("host_out", udp(60000, 53)).counted == {"drop_pool_exhausted": 1}


def test_the_largest_pool(host: HostBench) -> None:
    blocks = [PortRange(first, first + 15) for first in range(16384, 16384 + 32 * abi.POOL_WORDS_MAX, 32)]
    host.plane.set_ports([], [(block, Protocol.UDP) for block in blocks])
    last = blocks[-1]
    for block in blocks[:-1]:
        for port in range(block.first, block.last + 1):
            host.bind(Protocol.UDP, port - 8192, port)
    host.plane.sweep(0)
    assert {drawn(host, 40000 + number) for number in range(16)} == set(range(last.first, last.last + 1))


@pytest.mark.parametrize("order", [(4000, 4001), (4001, 4000)], ids=["RTP first", "RTCP first"])
def test_rtp_and_rtcp_get_neighbours(host: HostBench, order: tuple[int, int]) -> None:
    """RFC 4787, REQ-4 (parity) and section 4.2.3 (contiguity), with other programs drawing in between."""
    host.plane.set_ports([], [(PortRange(30000, 30063), Protocol.UDP)])
    for number in range(8):
        assert drawn(host, 6001 + 4 * number) % 2 == 1
        first = drawn(host, order[0] + 10 * number)
        assert drawn(host, 6000 + 4 * number + 2) % 2 == 0
        ports = {order[0] % 2: first, order[1] % 2: drawn(host, order[1] + 10 * number)}
        assert ports[1] == ports[0] + 1 and ports[0] % 2 == 0


def test_without_a_free_pair_parity_is_kept(host: HostBench) -> None:
    host.bind(Protocol.UDP, 5001, 30000)
    host.bind(Protocol.UDP, 5003, 30003)
    host.plane.sweep(0)
    assert (drawn(host, 4001), drawn(host, 4002)) == (30001, 30002)


def test_a_hint_that_is_wrong_costs_an_attempt_and_no_port(host: HostBench) -> None:
    host.plane.set_ports([], [(PortRange(30000, 30001), Protocol.UDP)])
    host.bind(Protocol.UDP, 5001, 30001)
    assert drawn(host, 4001) == 30000
    host.plane.sweep(0)
    assert host.plane.free_ports()[abi.PortClass.UDP] == 0


def test_a_port_is_free_again_after_its_binding_has_gone(host: HostBench) -> None:
    ports = {drawn(host, 4000 + number) for number in range(4)}
    host.plane.set_exhausted(True)
    assert host.run("host_out", udp(60000, 53)).verdict == REDIRECT
    assert host.plane.sweep(10**9) == 4
    assert host.plane.free_ports()[abi.PortClass.UDP] == 4
    assert {drawn(host, 7000 + number) for number in range(4)} == ports


def test_a_local_sockets_port_is_drawn_once_the_socket_is_closed(host: HostBench) -> None:
    host.plane.set_ports([], [(PortRange(30000, 30001), Protocol.UDP)])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.bind(("0.0.0.0", 30000))
        assert drawn(host, 4000) == 30001
    host.plane.sweep(0)
    assert drawn(host, 4002) == 30000


REFUSED_PACKETS = {"UDP": udp(4000, 53), "TCP": tcp(4000, 80, flags="S"), "a ping": echo(4000)}


@pytest.mark.parametrize("packet", REFUSED_PACKETS.values(), ids=REFUSED_PACKETS.keys())
def test_when_no_more_ports_can_be_had_the_program_is_told(host: HostBench, packet: Packet) -> None:
    host.plane.set_ports([], [])
    host.plane.set_exhausted(True)
    host.check(
        "host_out",
        Case("none", packet, REDIRECT, "drop_pool_exhausted", refusal(packet), also=("host_refused",)),
    )


def test_while_more_may_be_had_the_packet_is_dropped_and_sent_again(host: HostBench) -> None:
    host.check("host_out", Case("wait", udp(4000, 53), DROP, "drop_pool_exhausted", bindings=FULL))


def test_programs_are_told_nothing_if_so_configured(host: HostBench) -> None:
    host.set_policy(Policy(answers_refusals=False))
    host.plane.set_exhausted(True)
    host.check("host_out", Case("silent", udp(4000, 53), DROP, "drop_pool_exhausted", bindings=FULL))


def test_nothing_answers_an_error(host: HostBench) -> None:
    host.plane.set_exhausted(True)
    about = udp(9, 4000, src=REMOTE, dst=EXTERNAL)
    host.check("host_out", Case("no binding", error(about, src=EXTERNAL, dst=REMOTE), DROP, "drop_error_unbound"))


def test_a_refusal_survives_a_new_configuration(host: HostBench) -> None:
    host.plane.set_exhausted(True)
    host.set_policy(Policy())
    host.plane.set_ports([], [])
    assert host.run("host_out", udp(4000, 53)).verdict == REDIRECT
    host.plane.set_exhausted(False)
    assert host.run("host_out", udp(4000, 53)).verdict == DROP


def test_user_space_is_told_before_the_pool_is_empty(host: HostBench) -> None:
    host.set_policy(Policy(low_water=2))
    assert (host.run("host_out", udp(4000, 53)).counted, host.plane.drain_events()) == (
        {"host_out_translated": 1, "host_binding_created": 1},
        [],
    )
    assert host.run("host_out", udp(4001, 53)).counted["host_pool_low"] == 1
    assert host.plane.drain_events() == [PoolEvent(abi.PortClass.UDP, 2)]
    drawn(host, 4002)
    assert host.plane.drain_events() == [], "at most once a second"
    assert host.run("host_out", tcp(4000, 80, flags="S")).verdict == PASS
    assert host.plane.drain_events() == [], "TCP has ports enough"


def test_user_space_is_told_of_an_empty_pool(host: HostBench) -> None:
    host.check("host_out", Case("none left", udp(4000, 53), DROP, "drop_pool_exhausted", bindings=FULL))
    assert host.plane.drain_events() == [PoolEvent(abi.PortClass.UDP, 0)]


def test_a_block_is_retired_only_when_no_binding_uses_it(host: HostBench) -> None:
    first, second = PortRange(30000, 30003), PortRange(30004, 30005)
    host.plane.set_ports([], [(first, Protocol.ANY), (second, Protocol.ANY)])
    host.bind(Protocol.TCP, 5000, 30004)
    assert not host.plane.retire(second)
    assert {drawn(host, 4000 + number) for number in range(6)} == set(range(30000, 30006))
    assert host.plane.sweep(10**9) == 7
    assert host.plane.retire(second)
    assert {drawn(host, 4000 + number) for number in range(4)} == set(range(30000, 30004))
    assert host.run("host_out", udp(5000, 53)).counted == {"drop_pool_exhausted": 1}
