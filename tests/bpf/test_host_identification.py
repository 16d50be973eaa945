"""IP identifications of packets that may be fragmented come from the host's own share (RFC 6864)."""

from __future__ import annotations

import pytest
from bpf_bench import EXTERNAL, NATIVE, PASS, POOL, REMOTE, Case, HostBench, echo, ether, tcp, udp
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from dnat.types import PortRange, Protocol

SHARE = [*range(NATIVE.first, NATIVE.last + 1), *range(POOL.first, POOL.last + 1)]


def may_be_fragmented(packet: Packet, identification: int) -> Packet:
    packet[IP].flags = 0
    packet[IP].id = identification
    return packet


@pytest.mark.parametrize("identification", [0, 1, 19, 20, 30001, 65535])
@pytest.mark.parametrize("packet", [udp(20000, 7), tcp(20001, 80), echo(20002)], ids=["UDP", "TCP", "ICMP"])
def test_an_identification_is_one_of_the_hosts_ports(host: HostBench, packet: Packet, identification: int) -> None:
    sent = may_be_fragmented(packet.copy(), identification)
    leaves = may_be_fragmented(packet.copy(), SHARE[identification % len(SHARE)])
    host.check("host_out", Case("fragmentable", sent, PASS, "host_out_native", leaves, also=("host_id_replaced",)))


def test_port_and_identification_are_replaced_together(host: HostBench) -> None:
    sent, leaves = (may_be_fragmented(udp(port, 53), number) for port, number in ((4000, 5), (30002, SHARE[5])))
    host.bind(Protocol.UDP, 4000, 30002)
    host.check(
        "host_out",
        Case("both", sent, PASS, "host_out_translated", leaves, ("host_id_replaced",), {(Protocol.UDP, 4000): 30002}),
    )


def test_an_atomic_packet_stays_as_it_is(host: HostBench) -> None:
    packet = udp(20000, 7)
    packet[IP].id = 4711
    host.check("host_out", Case("DF", packet, PASS, "host_out_native"))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 1, 0)], ids=str)
def test_all_fragments_get_the_same_identification(host: HostBench, order: tuple[int, ...]) -> None:
    fields = {"src": EXTERNAL, "dst": REMOTE, "id": 4711}
    fragments = [
        ether(IP(**fields, flags="MF") / UDP(sport=20000, dport=9, len=48, chksum=1) / Raw(b"f" * 16)),
        ether(IP(**fields, proto=17, flags="MF", frag=3) / Raw(b"m" * 16)),
        ether(IP(**fields, proto=17, frag=5) / Raw(b"l" * 8)),
    ]
    seen = {Ether(host.run("host_out", fragments[number]).packet)[IP].id for number in order}
    assert seen == {SHARE[4711 % len(SHARE)]}


def test_ports_that_are_ours_for_one_protocol_only_are_no_identifications(host: HostBench) -> None:
    """Another host may have them for another protocol."""
    host.plane.set_ports([(PortRange(20000, 20003), Protocol.UDP), (PortRange(20004, 20005), Protocol.ANY)], [])
    sent = may_be_fragmented(udp(20000, 7), 3)
    leaves = may_be_fragmented(udp(20000, 7), 20005)
    host.check("host_out", Case("share of two", sent, PASS, "host_out_native", leaves, also=("host_id_replaced",)))


def test_without_a_share_identifications_stay(host: HostBench) -> None:
    host.plane.set_ports([(NATIVE, Protocol.UDP)], [])
    host.check("host_out", Case("none", may_be_fragmented(udp(20000, 7), 3), PASS, "host_out_native"))
