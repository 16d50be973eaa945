"""Where a NAT has a choice: filtering, refresh by inbound packets, timers; and static bindings."""

from __future__ import annotations

import math
import time

import pytest
from bpf_bench import DROP, EXTERNAL, PASS, REMOTE, Case, HostBench, echo, error, tcp, udp
from scapy.layers.inet import IP

from dnat.dataplane.host import Policy
from dnat.types import PortRange, Protocol

UDP, TCP, ICMP = Protocol.UDP, Protocol.TCP, Protocol.ICMP
STRANGER = "192.0.2.1"


def from_outside(source: str, port: int = 53) -> IP:
    return udp(port, 30002, src=source, dst=EXTERNAL)


@pytest.fixture
def filtering(host: HostBench) -> HostBench:
    """Address-dependent filtering, and a binding that has sent to REMOTE:53."""
    host.set_policy(Policy(filters_by_address=True))
    host.bind(UDP, 4000, 30002)
    assert host.run("host_out", udp(4000, 53)).verdict == PASS
    return host


@pytest.mark.parametrize("port", [53, 9999], ids=["same port", "another port"])
def test_whom_a_binding_has_sent_to_may_answer(filtering: HostBench, port: int) -> None:
    assert filtering.run("host_in", from_outside(REMOTE, port)).counted == {"host_in_translated": 1}


def test_a_stranger_is_filtered(filtering: HostBench) -> None:
    outcome = filtering.run("host_in", from_outside(STRANGER))
    assert (outcome.verdict, outcome.counted) == (DROP, {"drop_filtered": 1})
    filtering.run("host_out", udp(4000, 53, dst=STRANGER))
    assert filtering.run("host_in", from_outside(STRANGER)).verdict == PASS


def test_a_new_binding_lets_in_whom_its_first_packet_went_to(host: HostBench) -> None:
    host.set_policy(Policy(filters_by_address=True))
    host.plane.set_ports([], [(PortRange.parse("30002"), UDP)])
    assert host.run("host_out", udp(4000, 53)).verdict == PASS
    assert host.run("host_in", from_outside(REMOTE)).verdict == PASS
    assert host.run("host_in", from_outside(STRANGER)).verdict == DROP


def test_errors_come_from_routers_on_the_way_and_pass(filtering: HostBench) -> None:
    sent = error(udp(30002, 53), src=STRANGER, dst=EXTERNAL, kind=11)
    assert filtering.run("host_in", sent).counted == {"host_in_translated": 1}


def test_a_former_bindings_peers_are_not_let_in(filtering: HostBench) -> None:
    filtering.plane.sweep(10**9)
    filtering.bind(UDP, 7000, 30002)
    assert filtering.run("host_in", from_outside(REMOTE)).counted == {"drop_filtered": 1}


def test_leave_to_answer_ends(host: HostBench) -> None:
    host.set_policy(Policy(filters_by_address=True))
    host.bind(UDP, 4000, 30002, limit=1)
    host.run("host_out", udp(4000, 53))
    deadline = time.monotonic() + 10
    while (verdict := host.run("host_in", from_outside(REMOTE)).verdict) == PASS and time.monotonic() < deadline:
        time.sleep(0.05)
    assert verdict == DROP


@pytest.mark.parametrize("packet", [from_outside(REMOTE), from_outside(STRANGER)], ids=["peer", "stranger"])
def test_with_endpoint_independent_filtering_anybody_gets_in(host: HostBench, packet: IP) -> None:
    host.bind(UDP, 4000, 30002)
    assert host.run("host_in", packet).verdict == PASS


def idle(host: HostBench) -> float:
    (binding,) = host.plane.bindings(time.monotonic())
    return binding.idle


def test_inbound_packets_refresh_if_wanted(host: HostBench) -> None:
    host.set_policy(Policy(inbound_refreshes=True))
    host.bind(UDP, 4000, 30002, idle=20)
    host.run("host_in", error(udp(30002, 53), src=REMOTE, dst=EXTERNAL))
    assert idle(host) > 19, "RFC 5508: an error does not"
    host.run("host_in", from_outside(STRANGER))
    assert idle(host) < 5


def test_a_filtered_packet_refreshes_nothing(filtering: HostBench) -> None:
    filtering.set_policy(Policy(filters_by_address=True, inbound_refreshes=True))
    filtering.bind(UDP, 4000, 30002, idle=20)
    filtering.run("host_in", from_outside(STRANGER))
    assert idle(filtering) > 19


TIMERS = Policy(udp=1200, tcp_established=9000, tcp_transitory=600, icmp=90)


@pytest.mark.parametrize(
    ("packets", "seconds"),
    [
        ([udp(4000, 9)], 1200),
        ([echo(4000)], 90),
        ([tcp(4000, 9, flags="S")], 600),
        ([tcp(4000, 9, flags="S"), tcp(4000, 9)], 9000),
        ([tcp(4000, 9, flags="S"), tcp(4000, 9), tcp(4000, 9, flags="R")], 600),
    ],
    ids=["UDP", "ICMP", "TCP opening", "TCP established", "TCP reset"],
)
def test_timers_follow_the_configuration(host: HostBench, packets: list[IP], seconds: int) -> None:
    host.set_policy(TIMERS)
    for packet in packets:
        assert host.run("host_out", packet).verdict == PASS
    (binding,) = host.plane.bindings(time.monotonic())
    assert round(binding.idle + binding.expires_in) == seconds


@pytest.mark.parametrize("filters", [False, True], ids=["endpoint-independent", "address-dependent"])
def test_simultaneous_open(host: HostBench, filters: bool) -> None:
    """RFC 5382, REQ-2: both sides send SYN, and both arrive."""
    host.set_policy(Policy(filters_by_address=filters))
    host.plane.set_ports([], [(PortRange.parse("30000"), TCP)])
    syn = tcp(80, 30000, src=REMOTE, dst=EXTERNAL, flags="S")
    assert host.run("host_in", syn).counted == {"drop_unbound": 1}
    assert host.run("host_out", tcp(4000, 80, flags="S")).verdict == PASS
    host.check(
        "host_in",
        Case(
            "the other SYN",
            syn,
            PASS,
            "host_in_translated",
            tcp(80, 4000, src=REMOTE, dst=EXTERNAL, flags="S"),
            creates={(TCP, 4000): 30000},
        ),
    )
    assert host.run("host_out", tcp(4000, 80, flags="SA")).verdict == PASS
    assert host.run("host_in", tcp(80, 30000, src=REMOTE, dst=EXTERNAL)).verdict == PASS


def test_a_static_binding_works_in_both_directions_and_stays(host: HostBench) -> None:
    host.plane.set_static({(UDP, 5060): 30001})
    host.check(
        "host_in",
        Case(
            "unasked",
            udp(9, 30001, src=STRANGER, dst=EXTERNAL),
            PASS,
            "host_in_translated",
            udp(9, 5060, src=STRANGER, dst=EXTERNAL),
            creates={(UDP, 5060): 30001},
        ),
    )
    assert host.run("host_out", udp(5060, 9)).packet == bytes(udp(30001, 9))
    assert host.plane.sweep(10**9) == 0
    (binding,) = host.plane.bindings(time.monotonic())
    assert (binding.static, binding.expires_in) == (True, math.inf)


def test_a_static_tcp_binding_outlives_connections(host: HostBench) -> None:
    host.plane.set_static({(TCP, 5060): 30001})
    for flags in ("S", "A", "R"):
        host.run("host_out", tcp(5060, 80, flags=flags))
    assert host.plane.sweep(10**9) == 0


def test_a_static_binding_takes_the_place_of_a_drawn_one(host: HostBench) -> None:
    host.bind(UDP, 5060, 30003)
    host.plane.set_static({(UDP, 5060): 30001})
    assert host.bound() == {(UDP, 5060): 30001}
    assert host.run("host_in", udp(9, 30003, src=REMOTE, dst=EXTERNAL)).counted == {"drop_unbound": 1}


def test_static_bindings_go_when_they_are_no_longer_wanted(host: HostBench) -> None:
    host.bind(UDP, 4000, 30002)
    host.plane.set_static({(UDP, 5060): 30001, (TCP, 5060): 30001})
    host.plane.set_static({(TCP, 5060): 30001})
    assert host.bound() == {(UDP, 4000): 30002, (TCP, 5060): 30001}


def test_a_static_bindings_port_is_drawn_by_nobody_else(host: HostBench) -> None:
    host.plane.set_ports([], [(PortRange.parse("30001"), UDP)])
    host.plane.set_static({(UDP, 5060): 30001})
    assert host.run("host_out", udp(4001, 9)).counted == {"drop_pool_exhausted": 1}
