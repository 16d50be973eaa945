"""Fragments through the router programs: in order, ahead of their first one, forged, too many."""

from __future__ import annotations

import itertools
import struct
from ipaddress import IPv4Address

import pytest
from bpf_bench import (
    DROP,
    EXTERNAL,
    MAC_A,
    MAC_B,
    OWN_EXTERNAL,
    PASS,
    REDIRECT,
    REMOTE,
    Case,
    RouterBench,
    ether,
)
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Packet, Raw

from dnat.dataplane import abi


def moved(says: str, packet: Packet, counted: str) -> Case:
    less = packet.copy()
    less[IP].ttl -= 1
    return Case(says, packet, REDIRECT, counted, leaves=less)


def held(says: str, packet: Packet) -> Case:
    return Case(says, packet, DROP, "router_fragment_held")


def fragments(port_first: int, port_second: int, mac: str = MAC_A, **addresses: str) -> list[Packet]:
    """A datagram of three fragments from or to the ports given."""
    first = IP(flags="MF", id=5, **addresses) / UDP(sport=port_first, dport=port_second, len=48, chksum=1)
    middle = IP(flags="MF", id=5, proto=17, frag=3, **addresses) / Raw(b"m" * 16)
    last = IP(id=5, proto=17, frag=5, **addresses) / Raw(b"l" * 8)
    return [ether(packet, source=mac) for packet in (first / Raw(b"f" * 16), middle, last)]


def inbound(port: int = 20000, source: str = REMOTE, destination: str = EXTERNAL) -> list[Packet]:
    return fragments(7, port, src=source, dst=destination)


def waiting(router: RouterBench) -> list[abi.Held]:
    return [abi.Held.from_buffer_copy(value) for _, value in router.plane._maps["waiting"].items()]


@pytest.mark.parametrize(
    ("program", "packets", "counted"),
    [
        ("router_wan", inbound(), "router_in"),
        ("router_lan", fragments(20000, 7, src=EXTERNAL, dst=REMOTE), "router_out"),
        ("router_lan", fragments(20000, 20016, src=EXTERNAL, dst=EXTERNAL), "router_hairpin"),
    ],
    ids=["in", "out", "hairpin"],
)
def test_later_fragments_follow_the_first(
    router: RouterBench, program: str, packets: list[Packet], counted: str
) -> None:
    for packet in packets:
        router.check(program, moved("a fragment", packet, counted))
    # The datagram is complete, so the same identification is another datagram's now.
    router.check(program, held("one too many", packets[-1]))


def test_a_held_fragment_is_kept_as_it_came(router: RouterBench) -> None:
    _, middle, last = inbound()
    router.check("router_wan", held("the last comes first", last))
    router.check("router_wan", held("then the one before", middle))
    frames = [bytes(one.frame)[: one.length] for one in waiting(router)]
    assert sorted(frames) == sorted([bytes(middle), bytes(last)])


def test_a_fragment_whose_stage_is_missing(router: RouterBench) -> None:
    _, middle, _ = inbound()
    with router.without_stage(abi.Stage.HOLD):
        router.check("router_wan", Case("nobody holds it", middle, DROP, "drop_stage_missing"))
    router.check("router_wan", held("now it is held", middle))


def test_two_hosts_may_use_the_same_identification(router: RouterBench) -> None:
    of_a = fragments(20000, 7, src=EXTERNAL, dst=REMOTE)
    of_b = fragments(20016, 20000, mac=MAC_B, src=EXTERNAL, dst=REMOTE)
    stranger = of_a[1].copy()
    stranger.src = "02:00:00:00:00:0c"
    router.check("router_lan", moved("first of A", of_a[0], "router_out"))
    router.check("router_lan", held("B has no first one yet", of_b[1]))
    router.check("router_lan", held("neither A nor B", stranger))
    router.check("router_lan", moved("second of A", of_a[1], "router_out"))


def test_a_fragment_to_the_routers_own_stack(router: RouterBench) -> None:
    first, middle, _ = inbound(9, destination=OWN_EXTERNAL)
    router.check("router_wan", Case("first", first, PASS, "router_to_self"))
    router.check("router_wan", Case("later", middle, PASS, "router_to_self"))


def test_the_rest_of_what_nobody_owns(router: RouterBench) -> None:
    first, middle, _ = inbound(9)
    router.check("router_wan", Case("first", first, DROP, "drop_no_owner"))
    router.check("router_wan", Case("later", middle, DROP, "drop_no_owner"))


def expire_fragments(router: RouterBench) -> None:
    seen = router.plane._maps["fragments"]
    for key, value in seen.items():
        entry = abi.Fragment.from_buffer_copy(value)
        entry.expires_ns -= (abi.FRAGMENT_SECONDS + 1) * 1_000_000_000
        seen.put(key, bytes(entry))


def expire_waiting(router: RouterBench) -> None:
    for slot, value in router.plane._maps["waiting"].items():
        entry = abi.Held.from_buffer_copy(value)
        entry.expires_ns -= (abi.WAITING_SECONDS + 1) * 1_000_000_000
        router.plane._maps["waiting"].put(slot, bytes(entry))


def test_later_fragments_come_soon_or_are_another_datagrams(router: RouterBench) -> None:
    first, middle, _ = inbound()
    router.check("router_wan", moved("first", first, "router_in"))
    expire_fragments(router)
    router.check("router_wan", held("too late", middle))


def test_one_source_cannot_take_the_room_of_others(router: RouterBench) -> None:
    def early(number: int, source: str) -> Packet:
        return ether(IP(src=source, dst=EXTERNAL, proto=17, id=number, frag=2) / Raw(b"x" * 16))

    for number in range(abi.WAITING_SLOTS):
        router.check("router_wan", held("there is room", early(number, REMOTE)))
    for number in range(100, 105):
        full = Case("no room left", early(number, REMOTE), DROP, "drop_fragment_no_room")
        router.check("router_wan", full)
    outcomes = [router.run("router_wan", early(1, f"192.0.2.{n}")).counted for n in range(8)]
    # Two sources may share a bucket, by chance; most do not.
    assert sum(counted == {"router_fragment_held": 1} for counted in outcomes) >= 6
    assert len(waiting(router)) <= abi.WAITING_SLOTS + 8


def test_room_is_free_again_after_a_while(router: RouterBench) -> None:
    packets = [
        ether(IP(src=REMOTE, dst=EXTERNAL, proto=17, id=number, frag=2) / Raw(b"x" * 16))
        for number in range(abi.WAITING_SLOTS + 1)
    ]
    for packet in packets[:-1]:
        router.check("router_wan", held("there is room", packet))
    expire_waiting(router)
    # The one that gives way is counted now: its first one never came.
    late = Case("in place of one", packets[-1], DROP, "router_fragment_held", also=("drop_fragment_unknown",))
    router.check("router_wan", late)
    assert len(waiting(router)) == abi.WAITING_SLOTS


def test_a_frame_too_long_to_be_held(router: RouterBench) -> None:
    packet = ether(IP(src=REMOTE, dst=EXTERNAL, proto=17, frag=200) / Raw(b"x" * 1600))
    router.check("router_wan", Case("jumbo", packet, DROP, "drop_fragment_no_room"))
    packet = ether(IP(src=REMOTE, dst=EXTERNAL, proto=17, frag=200) / Raw(b"x" * (abi.WAITING_OCTETS - 34)))
    router.check("router_wan", held("the longest", packet))


TCP_FIRST = ether(IP(src=REMOTE, dst=EXTERNAL, id=5, flags="MF") / TCP(sport=7, dport=20000) / Raw(b"x" * 4))


@pytest.mark.parametrize("offset", [1, 2])
def test_a_fragment_that_would_rewrite_tcp_flags(router: RouterBench, offset: int) -> None:
    """RFC 1858 and RFC 3128: what the first fragment says stands."""
    router.check("router_wan", moved("first", TCP_FIRST, "router_in"))
    forged = ether(IP(src=REMOTE, dst=EXTERNAL, id=5, proto=6, frag=offset) / Raw(b"x" * 16))
    router.check("router_wan", Case("forged", forged, DROP, "drop_fragment_overlap"))


def test_two_first_fragments_that_disagree(router: RouterBench) -> None:
    of_a, of_b = inbound(20000), inbound(20016)
    router.check("router_wan", moved("to A", of_a[0], "router_in"))
    router.check("router_wan", moved("the same again", of_a[0], "router_in"))
    router.check("router_wan", Case("now to B", of_b[0], DROP, "drop_fragment_overlap"))
    for packet in (*of_a, *of_b):
        router.check("router_wan", Case("none of it is safe", packet, DROP, "drop_fragment_overlap"))


def test_after_its_time_an_identification_may_mean_something_else(router: RouterBench) -> None:
    router.check("router_wan", moved("to A", inbound(20000)[0], "router_in"))
    expire_fragments(router)
    router.check("router_wan", moved("to B", inbound(20016)[0], "router_in"))


MALFORMED = [
    ("a first fragment without its ports", IP(flags="MF", proto=17) / Raw(b"x" * 0)),
    ("a first fragment that pads its ports", IP(flags="MF", proto=17, len=24) / Raw(b"\x00\x07\x4e\x20" * 4)),
    ("a first fragment that pads its TCP flags", IP(flags="MF", proto=6, len=36) / Raw(b"\x00\x07\x4e\x20" * 8)),
    ("a length between the eights", IP(flags="MF", proto=17, frag=2) / Raw(b"x" * 15)),
    ("beyond the longest datagram", IP(proto=17, frag=0x1FFF) / Raw(b"x" * 16)),
    ("nothing in it", IP(proto=17, frag=3)),
]


@pytest.mark.parametrize(("says", "packet"), MALFORMED, ids=[says for says, _ in MALFORMED])
def test_impossible_fragments(router: RouterBench, says: str, packet: Packet) -> None:
    sent = packet.copy()
    sent.src, sent.dst = REMOTE, EXTERNAL
    router.check("router_wan", Case(says, ether(sent), DROP, "drop_malformed"))


def test_sources_spread_over_the_buckets(router: RouterBench) -> None:
    used = set()
    for number in range(200):
        source = str(IPv4Address("192.0.2.0") + number)
        router.run("router_wan", ether(IP(src=source, dst=EXTERNAL, proto=17, id=1, frag=2) / Raw(b"x" * 16)))
    for (slot,) in (struct.unpack("=I", key) for key, _ in router.plane._maps["waiting"].items()):
        used.add(slot // abi.WAITING_SLOTS)
    assert len(used) > abi.WAITING_BUCKETS // 2


def test_hosts_have_rooms_of_their_own(router: RouterBench) -> None:
    """Hosts share the source address, so their link addresses tell them apart."""
    sources = itertools.product(range(2), range(abi.WAITING_SLOTS))
    for host, number in sources:
        packet = IP(src=EXTERNAL, dst=REMOTE, proto=17, id=number, frag=2) / Raw(b"x" * 16)
        router.check("router_lan", held("room", ether(packet, source=(MAC_A, MAC_B)[host])))
    assert len(waiting(router)) == 2 * abi.WAITING_SLOTS


def test_the_first_fragment_frees_those_that_waited(router: RouterBench) -> None:
    """It enters again, too, ahead of them; what becomes of them is tested on the wire."""
    first, middle, last = inbound()
    for packet in (last, middle):
        router.check("router_wan", held("early", packet))
    outcome = router.run("router_wan", first)
    assert (outcome.verdict, outcome.counted) == (DROP, {"router_fragment_released": 2})
    assert waiting(router) == []
