"""What the short cut at XDP takes, what it leaves to TC, and that it sends it to the right link address.

That both together come to the same verdicts as TC alone is tested with all other packets (fixture ``router``).
"""

from __future__ import annotations

import ctypes
from ipaddress import IPv4Address

import pytest
from bpf_bench import (
    EXTERNAL,
    HOST_A,
    HOST_B,
    MAC_B,
    OTHER_EXTERNAL,
    OWN_EXTERNAL,
    REDIRECT,
    REMOTE,
    Outcome,
    RouterBench,
    echo,
    error,
    ether,
    tcp,
    udp,
)
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw
from xdp_bench import RouterXdpBench

from dnat.dataplane import abi

IN = {"src": REMOTE, "dst": EXTERNAL}

TAKEN = [
    ("router_wan", "UDP", udp(7, 20000, **IN), HOST_A),
    ("router_wan", "UDP without a checksum", udp(7, 20000, chksum=0, **IN), HOST_A),
    ("router_wan", "TCP", tcp(80, 20016, **IN), HOST_B),
    ("router_wan", "a ping", echo(20001, **IN), HOST_A),
    ("router_wan", "to the router's own address", udp(7, 20000, src=REMOTE, dst=OWN_EXTERNAL), HOST_A),
    ("router_wan", "the longest", ether(IP(**IN) / UDP(sport=7, dport=20000) / Raw(bytes(1472))), HOST_A),
    ("router_lan", "UDP", udp(20000, 7), REMOTE),
    ("router_lan", "TCP", tcp(20015, 80), REMOTE),
    ("router_lan", "a ping", echo(20001), REMOTE),
    ("router_lan", "hairpin", udp(20000, 20016, dst=EXTERNAL), HOST_B),
]


@pytest.mark.parametrize(
    ("program", "packet", "receiver"), [(p, k, r) for p, _, k, r in TAKEN], ids=[f"{p}: {s}" for p, s, _, _ in TAKEN]
)
def test_plain_packets_are_taken(router_xdp: RouterXdpBench, program: str, packet: Packet, receiver: str) -> None:
    router_xdp.run(program, packet)
    taken = router_xdp.run_xdp(program, packet)
    assert taken is not None
    found, left = taken
    assert found == receiver
    expected = packet.copy()
    expected[IP].ttl -= 1
    del expected[IP].chksum
    assert left[14:] == bytes(expected)[14:]


def begun(packet: Packet) -> Packet:
    """With a checksum as a virtual cable may carry it: that of the pseudo header alone, not complemented."""
    copy = Ether(bytes(packet))
    layer = copy[TCP] if TCP in copy else copy[UDP]
    octets = copy[IP].len - 20
    pseudo = bytes(IPv4Address(copy[IP].src).packed + IPv4Address(copy[IP].dst).packed)
    words = [int.from_bytes(pseudo[at : at + 2], "big") for at in range(0, 8, 2)] + [copy[IP].proto, octets]
    total = sum(words)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    layer.chksum = total
    return copy


PASSED = [
    ("router_wan", "an unowned port", udp(7, 9, **IN)),
    ("router_wan", "another address", udp(7, 20000, src=REMOTE, dst=OTHER_EXTERNAL)),
    ("router_wan", "the last hop", udp(7, 20000, ttl=1, **IN)),
    ("router_wan", "an ICMP error", error(udp(20016, 7), **IN)),
    ("router_wan", "a first fragment", ether(IP(flags="MF", **IN) / UDP(sport=7, dport=20000) / Raw(bytes(16)))),
    ("router_wan", "IP options", ether(IP(options=[IPOption_NOP()] * 4, **IN) / UDP(sport=7, dport=20000))),
    ("router_wan", "a VLAN tag", Ether(dst="00:00:00:00:00:00") / Dot1Q(vlan=7) / udp(7, 20000, **IN)[IP]),
    ("router_wan", "to another machine", ether(udp(7, 20000, **IN)[IP], destination="02:00:00:00:00:77")),
    ("router_wan", "too big", ether(IP(**IN) / UDP(sport=7, dport=20000) / Raw(bytes(1473)))),
    ("router_wan", "from an address of this side", udp(7, 20000, src="10.66.0.12", dst=EXTERNAL)),
    ("router_wan", "a UDP checksum only begun", begun(udp(7, 20000, **IN))),
    ("router_wan", "a TCP checksum only begun", begun(tcp(80, 20000, **IN))),
    ("router_wan", "a TCP header cut short", ether(IP(proto=6, **IN) / Raw(bytes.fromhex("00504e2000000000")))),
    ("router_lan", "another host's port", udp(20016, 7)),
    ("router_lan", "a plain device", udp(4000, 20016, src="10.66.0.50", dst=EXTERNAL)),
    ("router_lan", "to the router", udp(20000, 53, dst=OWN_EXTERNAL)),
    ("router_lan", "multicast", udp(20000, 53, dst="224.0.0.251")),
    ("router_lan", "hairpin to nobody", udp(20000, 9, dst=EXTERNAL)),
]  # fmt: skip


@pytest.mark.parametrize(("program", "packet"), [(p, k) for p, _, k in PASSED], ids=[f"{p}: {s}" for p, s, _ in PASSED])
def test_others_are_left_to_tc(router_xdp: RouterXdpBench, program: str, packet: Packet) -> None:
    warm(router_xdp)
    assert router_xdp.run_xdp(program, packet) is None


def warm(router: RouterXdpBench) -> None:
    """Have the packets to both hosts that go by TC now and then behind us."""
    for port in (20000, 20016):
        router.run("router_wan", udp(7, port, **IN))


def test_the_first_packet_to_a_host_goes_by_tc_to_keep_the_neighbour_alive(router_xdp: RouterXdpBench) -> None:
    packet = udp(7, 20000, **IN)
    assert router_xdp.run_xdp("router_wan", packet) is None
    assert router_xdp.run_xdp("router_wan", packet) is None, "until TC has seen one"
    router_xdp.run("router_wan", packet)
    assert router_xdp.run_xdp("router_wan", packet) is not None


def age_ways(router: RouterXdpBench) -> int:
    """Let what is known of ways to destinations be too old; returns how many there are."""
    ways, size, aged = router.plane._maps["ways"], ctypes.sizeof(abi.Way), 0
    for key in ways.keys():  # noqa: SIM118
        values = bytearray(ways.get(key) or b"")
        known = [abi.Way.from_buffer(values, start) for start in range(0, len(values), size)]
        aged += sum(way.expires > 0 for way in known)
        for way in known:
            way.expires = 0
        del known
        ways.put(key, bytes(values))
    return aged


def test_now_and_then_a_packet_goes_out_by_tc_to_look_for_the_way_again(router_xdp: RouterXdpBench) -> None:
    packet = udp(20000, 7)
    assert router_xdp.run_xdp("router_lan", packet) is not None
    assert age_ways(router_xdp) == 1
    assert router_xdp.run_xdp("router_lan", packet) is None
    sent = len(router_xdp.receivers)
    RouterBench.run(router_xdp, "router_lan", packet)
    assert len(router_xdp.receivers) == sent, "the kernel finds the neighbour"
    assert router_xdp.run_xdp("router_lan", packet) is not None
    # TC may have seen it on another CPU.
    age_ways(router_xdp)
    assert router_xdp.run_xdp("router_lan", packet) is None
    assert router_xdp.run_xdp("router_lan", packet) is not None


def test_at_tc_a_way_is_looked_for_now_and_then(router_xdp: RouterXdpBench) -> None:
    packet = udp(20000, 7)
    for known in (True, False, True):
        sent = len(router_xdp.receivers)
        assert RouterBench.run(router_xdp, "router_lan", packet).verdict == REDIRECT
        assert (len(router_xdp.receivers) > sent) is known
        if known:
            age_ways(router_xdp)


def test_ways_differ_by_destination_source_and_class_of_service(router_xdp: RouterXdpBench) -> None:
    first = udp(20000, 7)
    others = [udp(20000, 7, dst="203.0.113.77"), udp(20000, 7, src=OWN_EXTERNAL), udp(20000, 7)]
    others[2][IP].tos = 0xB8
    del others[2][IP].chksum
    assert router_xdp.run_xdp("router_lan", first) is not None
    assert [router_xdp.run_xdp("router_lan", packet) is None for packet in others] == [True, False, False]
    assert age_ways(router_xdp) == 3


def test_a_neighbour_that_is_not_known_is_for_tc_to_find(router_xdp: RouterXdpBench) -> None:
    assert router_xdp.run_xdp("router_lan", udp(20000, 7, dst="203.0.113.77")) is None


def test_a_host_whose_link_address_is_not_known_is_for_tc_to_find(router_xdp: RouterXdpBench) -> None:
    warm(router_xdp)
    router_xdp.plane.set_macs({IPv4Address(HOST_A): bytes(6)})
    assert router_xdp.run_xdp("router_wan", udp(7, 20000, **IN)) is None
    assert router_xdp.run_xdp("router_lan", udp(20000, 7)) is None


@pytest.mark.parametrize("link", [abi.LINK_LAN, abi.LINK_WAN])
def test_without_its_links_xdp_passes_all(router_xdp: RouterXdpBench, link: int) -> None:
    warm(router_xdp)
    kept = {
        number: (index, bytes(6))
        for number, index in ((abi.LINK_LAN, router_xdp.lan_ifindex), (abi.LINK_WAN, router_xdp.wan_ifindex))
    }
    del kept[link]
    router_xdp.plane.set_links(kept)
    assert router_xdp.run_xdp("router_wan", udp(7, 20000, **IN)) is None
    assert router_xdp.run_xdp("router_lan", udp(20000, 7)) is None


def test_what_xdp_sends_is_counted_like_what_tc_sends(router_xdp: RouterXdpBench) -> None:
    warm(router_xdp)
    outcome = router_xdp.run("router_wan", udp(7, 20000, **IN))
    assert isinstance(outcome, Outcome)
    assert outcome.counted == {"router_in": 1}
    assert router_xdp.run("router_lan", udp(20000, 20016, dst=EXTERNAL)).counted == {"router_hairpin": 1}


def test_a_host_with_another_link_address_is_not_the_sender(router_xdp: RouterXdpBench) -> None:
    warm(router_xdp)
    assert router_xdp.run_xdp("router_lan", ether(udp(20000, 7)[IP], source=MAC_B)) is None
