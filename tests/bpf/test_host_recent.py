"""What the host's programs remember of a tick: it spares look-ups, and never contradicts the tables of bindings."""

from __future__ import annotations

import struct
import time

import pytest
from bpf_bench import EXTERNAL, PASS, POOL, REMOTE, HostBench, echo, tcp, udp
from bulk import Runner
from scapy.packet import Packet

from dnat.dataplane import abi
from dnat.dataplane.host import Policy
from dnat.dataplane.maps import index_key
from dnat.types import PortRange, Protocol

TCP, UDP, ICMP = Protocol.TCP, Protocol.UDP, Protocol.ICMP
IN = {"src": REMOTE, "dst": EXTERNAL}
LOCAL, UNIQUE = 4000, POOL.first
PACKET = {TCP: tcp, UDP: udp}


def entry(host: HostBench, way: str, protocol: Protocol, port: int) -> int:
    (port_class,) = abi.CLASSES_OF[protocol]
    value = host.plane._maps[f"recent_{way}"].get(index_key(abi.recent_index(port_class, port)))
    return int(struct.unpack("=Q", value or b"")[0])


def remembered(host: HostBench, protocol: Protocol) -> tuple[int, int]:
    """The ports noted for LOCAL and for UNIQUE, whatever the tick; 0: none."""
    return entry(host, "out", protocol, LOCAL) & 0xFFFF, entry(host, "in", protocol, UNIQUE) & 0xFFFF


def used(host: HostBench, protocol: Protocol) -> None:
    """A binding whose translations are noted."""
    host.bind(protocol, LOCAL, UNIQUE, state=abi.TcpState.ESTABLISHED if protocol is TCP else 0)
    assert host.run("host_out", PACKET[protocol](LOCAL, 53)).verdict == PASS
    assert host.run("host_in", PACKET[protocol](53, UNIQUE, **IN)).verdict == PASS
    assert remembered(host, protocol) == (UNIQUE, LOCAL)


def test_within_a_tick_the_tables_are_asked_once(host: HostBench) -> None:
    run = {name: Runner(host._programs[name]) for name in ("host_out", "host_in")}
    packets = {"host_out": bytes(udp(LOCAL, 53)), "host_in": bytes(udp(53, UNIQUE, **IN))}

    def sent_and_received() -> list[tuple[int, bytes]]:
        return [run[name](packets[name]) for name in run]

    def replace(out: int, inward: int) -> None:
        for name, port, value in (
            ("bindings_out", LOCAL, bytes(abi.Binding(port=out, idle_seconds=abi.IDLE_FOR_EVER))),
            ("bindings_in", UNIQUE, bytes(abi.Inward(port=inward))),
        ):
            host.plane._maps[name].put(bytes(abi.PortKey(port, abi.PortClass.UDP, 0)), value)

    first = [(PASS, bytes(udp(UNIQUE, 53))), (PASS, bytes(udp(53, LOCAL, **IN)))]
    later = [(PASS, bytes(udp(UNIQUE + 2, 53))), (PASS, bytes(udp(53, LOCAL + 2, **IN)))]
    limit = time.monotonic() + 60
    seen: list[list[tuple[int, bytes]]] = []
    # Once in a while a tick ends in between.
    while first not in seen:
        assert time.monotonic() < limit
        replace(UNIQUE, LOCAL)
        sent_and_received()
        replace(UNIQUE + 2, LOCAL + 2)
        seen = [sent_and_received()]
    while later not in seen:
        assert time.monotonic() < limit
        seen.append(sent_and_received())


@pytest.mark.parametrize("way", ["out", "in"])
def test_what_a_former_tick_said_does_not_count(host: HostBench, way: str) -> None:
    used(host, UDP)
    port = LOCAL if way == "out" else UNIQUE
    former = (entry(host, way, UDP, port) - (1 << 22)) & ~0xFFFF | 9
    host.plane._maps[f"recent_{way}"].put(index_key(abi.recent_index(1, port)), struct.pack("=Q", former))
    sent, leaves = (LOCAL, 53), (UNIQUE, 53)
    if way == "in":
        sent, leaves = (53, UNIQUE), (53, LOCAL)
    ends = IN if way == "in" else {}
    assert host.run(f"host_{way}", udp(*sent, **ends)).packet == bytes(udp(*leaves, **ends))


@pytest.mark.parametrize(
    ("protocol", "other", "port"),
    [(UDP, UDP, LOCAL + abi.RECENT_MAX), (UDP, TCP, LOCAL ^ 1024), (TCP, ICMP, LOCAL ^ 2048)],
)
def test_ports_that_share_an_entry_keep_apart(host: HostBench, protocol: Protocol, other: Protocol, port: int) -> None:
    assert len({abi.recent_index(*abi.CLASSES_OF[each], at) for each, at in ((protocol, LOCAL), (other, port))}) == 1
    run = Runner(host._programs["host_out"])
    host.bind(protocol, LOCAL, UNIQUE)
    host.bind(other, port, UNIQUE + 1)

    def sent(protocol: Protocol, port: int) -> bytes:
        packet: Packet = echo(port) if protocol is ICMP else PACKET[protocol](port, 53)
        return bytes(packet)

    for _ in range(50):
        assert run(sent(protocol, LOCAL)) == (PASS, sent(protocol, UNIQUE))
        assert run(sent(other, port)) == (PASS, sent(other, UNIQUE + 1))


@pytest.mark.parametrize(
    ("program", "flags", "kept"),
    [
        ("host_out", "A", True),
        ("host_out", "FA", True),
        ("host_out", "R", False),
        ("host_in", "FA", True),
        ("host_in", "R", False),
    ],
)
def test_a_segment_that_has_to_change_the_state_asks_the_table(
    host: HostBench, program: str, flags: str, kept: bool
) -> None:
    used(host, TCP)
    packet = tcp(LOCAL, 53, flags=flags) if program == "host_out" else tcp(53, UNIQUE, **IN, flags=flags)
    assert host.run(program, packet).verdict == PASS
    assert remembered(host, TCP) == (UNIQUE * kept, LOCAL)
    host.run("host_out", tcp(LOCAL, 53))
    (binding,) = host.plane.bindings(time.monotonic())
    assert binding.state == "established"


def test_a_syn_is_not_noted(host: HostBench) -> None:
    host.bind(TCP, LOCAL, UNIQUE)
    host.run("host_out", tcp(LOCAL, 53, flags="S"))
    assert remembered(host, TCP) == (0, 0)


def test_a_binding_that_is_removed_or_replaced_is_gone_at_once(host: HostBench) -> None:
    used(host, UDP)
    (binding,) = host.plane.bindings(time.monotonic())
    assert host.plane.forget(binding)
    assert remembered(host, UDP) == (0, 0)
    used(host, UDP)
    host.plane.set_static({(UDP, LOCAL): UNIQUE + 2})
    assert remembered(host, UDP) == (0, 0)
    used(host, UDP)
    host.plane.set_static({(UDP, LOCAL + 1): UNIQUE})
    assert remembered(host, UDP)[1] == 0


def test_a_port_taken_over_is_the_new_bindings_at_once(host: HostBench) -> None:
    host.plane.set_ports([], [(PortRange(UNIQUE, UNIQUE), UDP)])
    used(host, UDP)
    host.plane._maps["bindings_out"].put(
        bytes(abi.PortKey(LOCAL, abi.PortClass.UDP, 0)), bytes(abi.Binding(port=UNIQUE, idle_seconds=1))
    )
    assert host.run("host_out", udp(LOCAL + 2, 53)).packet == bytes(udp(UNIQUE, 53))
    assert remembered(host, UDP)[1] == 0


def test_who_may_answer_is_noted_for_each_packet(host: HostBench) -> None:
    host.set_policy(Policy(filters_by_address=True))
    host.bind(UDP, LOCAL, UNIQUE)
    send, receive = Runner(host._programs["host_out"]), Runner(host._programs["host_in"])
    for last in range(1, 30):
        peer = f"192.0.2.{last}"
        answer = bytes(udp(53, UNIQUE, src=peer, dst=EXTERNAL))
        assert receive(answer)[0] != PASS
        assert send(bytes(udp(LOCAL, 53, dst=peer)))[0] == PASS
        assert receive(answer)[0] == PASS
