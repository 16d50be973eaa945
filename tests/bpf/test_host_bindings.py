"""How bindings come to be, how long they live, and what happens when there is no room."""

from __future__ import annotations

import socket
import time

import pytest
from bpf_bench import DROP, EXTERNAL, PASS, POOL, REDIRECT, REMOTE, Case, HostBench, echo, error, tcp, udp
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from dnat.dataplane import abi
from dnat.errors import UsageError
from dnat.types import PortRange, Protocol

TCP, UDP_, ICMP = Protocol.TCP, Protocol.UDP, Protocol.ICMP


def drawn(host: HostBench, local_port: int) -> int:
    outcome = host.run("host_out", udp(local_port, 53))
    assert outcome.verdict == PASS, outcome
    assert outcome.packet == bytes(udp(Ether(outcome.packet)[UDP].sport, 53))
    return int(Ether(outcome.packet)[UDP].sport)


def test_the_first_packet_draws_a_port_of_the_pool_and_keeps_it(host: HostBench) -> None:
    port = drawn(host, 4000)
    assert port in POOL
    assert host.bound() == {(UDP_, 4000): port}
    assert drawn(host, 4000) == port


def test_parity_is_kept_while_there_are_ports_of_it(host: HostBench) -> None:
    assert {drawn(host, 4000) % 2, drawn(host, 4002) % 2} == {0}
    assert drawn(host, 4004) % 2 == 1


def test_the_choice_is_random(host: HostBench) -> None:
    host.plane.set_ports([], [(PortRange(30000, 30999), UDP_)])
    ports = [drawn(host, 4000 + 2 * number) for number in range(20)]
    assert len(set(ports)) == 20
    assert ports != sorted(ports)


def test_every_port_of_a_pool_of_128_can_be_drawn(host: HostBench) -> None:
    pool = PortRange(30000, 30127)
    host.plane.set_ports([], [(pool, UDP_)])
    assert {drawn(host, 4000 + number) for number in range(128)} == set(range(pool.first, pool.last + 1))
    assert host.run("host_out", udp(5000, 53)).counted == {"drop_pool_exhausted": 1}


def test_an_exhausted_pool_drops_and_evicts_nobody(host: HostBench) -> None:
    bindings = {(UDP_, 4000 + number): 30000 + number for number in range(4)}
    host.check("host_out", Case("fifth of four", udp(5000, 53), DROP, "drop_pool_exhausted", bindings=bindings))


def test_the_pool_of_another_protocol_is_its_own(host: HostBench) -> None:
    host.plane.set_ports([], [(POOL, TCP)])
    host.check("host_out", Case("no UDP ports", udp(4000, 53), DROP, "drop_pool_exhausted"))
    assert host.run("host_out", tcp(4000, 80, flags="S")).verdict == PASS


def test_a_full_table_refuses_and_leaves_nothing_behind(host: HostBench) -> None:
    bindings = host.plane._maps["bindings_out"]
    now = time.monotonic_ns()
    filler = bytes(abi.Binding(created_ns=now, seen_ns=now, idle_seconds=300, port=1))
    keys = [bytes(abi.PortKey(1 + number, abi.PortClass.ICMP, 0)) for number in range(abi.BINDINGS_MAX)]
    bindings.put_many(dict.fromkeys(keys, filler))
    outcome = host.run("host_out", udp(40000, 53))
    assert (outcome.verdict, outcome.counted) == (REDIRECT, {"drop_table_full": 1, "host_refused": 1})
    assert not list(host.plane._maps["bindings_in"].keys())


def test_a_port_that_a_local_socket_holds_is_not_drawn(host: HostBench) -> None:
    host.plane.set_ports([], [(PortRange.parse("30000"), Protocol.ANY)])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program, socket.socket() as listener:
        program.bind(("0.0.0.0", 30000))
        listener.bind(("0.0.0.0", 30000))
        listener.listen()
        for packet in (udp(4000, 53), tcp(4000, 80, flags="S")):
            host.check("host_out", Case("its only port is in use", packet, DROP, "drop_pool_exhausted"))
    assert drawn(host, 4000) == 30000


def test_a_port_drawn_for_another_is_not_kept_for_its_own_number(host: HostBench) -> None:
    host.bind(UDP_, 4000, 30001)
    assert drawn(host, 30001) == 30003


def test_an_expired_binding_gives_its_port_to_a_new_one(host: HostBench) -> None:
    host.plane.set_ports([], [(PortRange.parse("30000"), UDP_)])
    host.bind(UDP_, 4000, 30000, idle=11, limit=10)
    outcome = host.run("host_out", udp(4002, 53))
    assert outcome.packet == bytes(udp(30000, 53))
    assert outcome.counted == {
        "host_out_translated": 1,
        "host_binding_created": 1,
        "host_binding_taken_over": 1,
    }
    assert host.bound() == {(UDP_, 4002): 30000}


def test_a_live_binding_keeps_its_port(host: HostBench) -> None:
    host.plane.set_ports([], [(PortRange.parse("30000"), UDP_)])
    host.bind(UDP_, 4000, 30000, idle=9, limit=10)
    host.check("host_out", Case("no port", udp(4002, 53), DROP, "drop_pool_exhausted", creates={(UDP_, 4000): 30000}))


@pytest.mark.parametrize(
    ("packet", "seconds"),
    [(udp(4000, 9), 300), (tcp(4000, 9, flags="S"), 240), (echo(4000), 60)],
    ids=["UDP: RFC 4787 REQ-5", "TCP: RFC 5382 REQ-5", "ICMP: RFC 5508 REQ-2"],
)
def test_idle_time_of_a_new_binding(host: HostBench, packet: IP, seconds: int) -> None:
    host.run("host_out", packet)
    (binding,) = host.plane.bindings(time.monotonic())
    assert binding.idle + binding.expires_in == pytest.approx(seconds)
    assert host.plane.sweep(time.monotonic() + seconds - 1) == 0
    assert host.plane.sweep(time.monotonic() + seconds + 1) == 1
    assert host.bound() == {}


def test_an_outbound_packet_refreshes(host: HostBench) -> None:
    host.bind(UDP_, 4000, 30000, idle=20)
    host.run("host_out", udp(4000, 9))
    (binding,) = host.plane.bindings(time.monotonic())
    assert binding.idle < 5


@pytest.mark.parametrize(
    ("program", "packet"),
    [
        ("host_in", udp(9, 30000, src=REMOTE, dst=EXTERNAL)),
        ("host_out", error(udp(9, 4000, src=REMOTE, dst=EXTERNAL), src=EXTERNAL, dst=REMOTE)),
        ("host_in", error(udp(30000, 9), src=REMOTE, dst=EXTERNAL)),
    ],
    ids=["inbound (RFC 4787 REQ-6)", "an error sent (RFC 5508 REQ-6)", "an error received"],
)
def test_what_does_not_refresh(host: HostBench, program: str, packet: IP) -> None:
    host.bind(UDP_, 4000, 30000, idle=20)
    assert host.run(program, packet).verdict == PASS
    (binding,) = host.plane.bindings(time.monotonic())
    assert binding.idle > 19


CONVERSATIONS = {
    "three-way handshake": ([("out", "S"), ("in", "SA"), ("out", "A")], "established", 7440),
    "no answer yet": ([("out", "S"), ("out", "S")], "opening", 240),
    "closed by both": (
        [("out", "S"), ("out", "A"), ("out", "FA"), ("in", "FA"), ("out", "A")],
        "closing",
        240,
    ),
    "closed by one only": ([("out", "S"), ("out", "A"), ("in", "FA"), ("out", "A")], "established", 7440),
    "reset by the peer": ([("out", "S"), ("out", "A"), ("in", "R")], "closing", 240),
    "talk after a reset": ([("out", "S"), ("out", "A"), ("in", "R"), ("out", "A")], "established", 7440),
    "closed and opened again": (
        [("out", "S"), ("out", "A"), ("out", "FA"), ("in", "FA"), ("out", "A"), ("out", "S")],
        "opening",
        240,
    ),
    "several in turn, the last one new": (
        [("out", "S"), ("out", "A"), ("out", "S"), ("out", "FA"), ("in", "FA"), ("out", "S")],
        "established",
        7440,
    ),
    "one of two closed": (
        [("out", "S"), ("out", "A"), ("out", "S"), ("out", "A"), ("out", "FA"), ("in", "FA")],
        "established",
        7440,
    ),
}


@pytest.mark.parametrize(("segments", "state", "seconds"), CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_tcp_idle_time_follows_the_connection(
    host: HostBench, segments: list[tuple[str, str]], state: str, seconds: int
) -> None:
    host.plane.set_ports([], [(PortRange.parse("30000"), TCP)])
    for direction, flags in segments:
        if direction == "out":
            assert host.run("host_out", tcp(4000, 80, flags=flags)).verdict == PASS
        else:
            packet = tcp(80, 30000, src=REMOTE, dst=EXTERNAL, flags=flags)
            assert host.run("host_in", packet).counted == {"host_in_translated": 1}
    (binding,) = host.plane.bindings(time.monotonic())
    assert (binding.state, round(binding.idle + binding.expires_in)) == (state, seconds)


STRANGER = "203.0.113.77"


@pytest.mark.parametrize(
    ("program", "packet"),
    [
        ("host_in", tcp(80, 30000, src=STRANGER, dst=EXTERNAL, flags="R")),
        ("host_in", tcp(81, 30000, src=REMOTE, dst=EXTERNAL, flags="RA")),
        ("host_out", tcp(4000, 80, dst=STRANGER, flags="R")),
        ("host_out", tcp(4000, 81, flags="RA")),
    ],
    ids=["a stranger's reset", "from another port", "our answer to a stranger", "to another port"],
)
def test_only_its_own_resets_end_a_connection(host: HostBench, program: str, packet: IP) -> None:
    host.bind(TCP, 4000, 30000)
    for flags in "SA":
        host.run("host_out", tcp(4000, 80, flags=flags))
    age(host, 20)
    assert host.run(program, packet).verdict == PASS
    (binding,) = host.plane.bindings(time.monotonic())
    assert (binding.state, round(binding.idle + binding.expires_in)) == ("established", 7440)
    assert binding.idle > 19, "nor does an answer keep it alive (RFC 7857, section 7.1)"


def test_strangers_that_close_leave_a_connection_half_open(host: HostBench) -> None:
    host.bind(TCP, 4000, 30000)
    for flags in ("S", "A", "FA"):
        host.run("host_out", tcp(4000, 80, flags=flags))
    host.run("host_in", tcp(80, 30000, src=STRANGER, dst=EXTERNAL, flags="FA"))
    (binding,) = host.plane.bindings(time.monotonic())
    assert binding.state == "established"


def test_a_reset_does_not_keep_alive_what_is_closed(host: HostBench) -> None:
    host.bind(TCP, 4000, 30000)
    for flags in ("S", "A", "R"):
        host.run("host_out", tcp(4000, 80, flags=flags))
    age(host, 20)
    host.run("host_out", tcp(4000, 80, flags="R"))
    (binding,) = host.plane.bindings(time.monotonic())
    assert binding.state == "closing" and binding.idle > 19


def test_who_ended_an_opening_is_told_from_strangers(host: HostBench) -> None:
    host.plane.set_ports([], [(PortRange.parse("30000"), TCP)])
    host.run("host_out", tcp(4000, 80, flags="S"))
    age(host, 20)
    host.run("host_out", tcp(4000, 80, dst=STRANGER, flags="R"))
    (binding,) = host.plane.bindings(time.monotonic())
    assert binding.state == "opening" and binding.idle > 19
    host.run("host_in", tcp(80, 30000, src=REMOTE, dst=EXTERNAL, flags="RA"))
    (binding,) = host.plane.bindings(time.monotonic())
    assert binding.state == "closing"


def age(host: HostBench, seconds: float) -> None:
    """Make the one binding older."""
    ((key, value),) = host.plane._maps["bindings_out"].items()
    binding = abi.Binding.from_buffer_copy(value)
    binding.seen_ns -= int(seconds * 1e9)
    binding.seen_tick -= 1
    host.plane._maps["bindings_out"].put(key, bytes(binding))


def test_sweep_clears_halves_left_behind(host: HostBench) -> None:
    key = bytes(abi.PortKey(30000, abi.PortClass.UDP, 0))
    now = time.monotonic()
    host.plane._maps["bindings_in"].put(key, bytes(abi.Inward(created_ns=int(now * 1e9), port=4000)))
    host.plane.sweep(now)
    assert host.plane._maps["bindings_in"].get(key)
    host.plane.sweep(now + 11)
    assert host.plane._maps["bindings_in"].get(key) is None


def test_ports_taken_away_end_their_bindings_and_no_others(host: HostBench) -> None:
    host.bind(UDP_, 4000, 30000)
    host.bind(UDP_, 4001, 30001)
    host.plane.set_ports([], [(PortRange(30001, 30003), Protocol.ANY)])
    assert host.bound() == {(UDP_, 4001): 30001}
    assert drawn(host, 4001) == 30001


def test_ports_of_one_protocol_leave_the_others_alone(host: HostBench) -> None:
    host.plane.set_ports([(PortRange(20000, 20001), UDP_)], [])
    assert host.run("host_out", udp(20000, 9)).counted == {"host_out_native": 1}
    assert host.run("host_out", tcp(20000, 9)).counted == {"drop_pool_exhausted": 1}


def test_a_port_cannot_be_native_and_translated(host: HostBench) -> None:
    with pytest.raises(UsageError, match="both"):
        host.plane.set_ports([(PortRange(20000, 20003), UDP_)], [(PortRange(20003, 20010), Protocol.ANY)])


def test_a_pool_has_a_limit(host: HostBench) -> None:
    with pytest.raises(UsageError, match="4096"):
        host.plane.set_ports([], [(PortRange(30000, 39000), UDP_)])
