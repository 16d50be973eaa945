"""ICMP errors of the router itself, and packets that do not fit."""

from __future__ import annotations

import struct

import pytest
from bpf_bench import (
    DROP,
    EXTERNAL,
    HOST_A,
    OWN_EXTERNAL,
    REDIRECT,
    REMOTE,
    ROUTER,
    Case,
    RouterBench,
    echo,
    error,
    ether,
    router_error,
    tcp,
    udp,
)
from scapy.layers.inet import IP, TCP, UDP, IPOption
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from dnat.dataplane import abi

DEVICE = "10.66.0.50"


def inbound(external: str = EXTERNAL) -> dict[str, str]:
    return {"src": REMOTE, "dst": external}


def long(packet: Packet, octets: int, *, dont_fragment: bool = True) -> Packet:
    """The packet with data up to so many octets of IP."""
    copy = packet.copy()
    copy[IP].flags = "DF" if dont_fragment else 0
    copy[Raw].load = bytes(n % 251 for n in range(octets - len(bytes(copy[IP])) + len(copy[Raw].load)))
    return Ether(bytes(copy))


def expired(says: str, packet: Packet, source: str) -> Case:
    leaves = router_error(packet, source)
    return Case(says, packet, REDIRECT, "drop_ttl_expired", leaves, also=("router_time_exceeded",))


def too_big(says: str, packet: Packet, source: str, mtu: int = 1500) -> Case:
    leaves = router_error(packet, source, mtu=mtu)
    return Case(says, packet, REDIRECT, "drop_too_big", leaves, also=("router_fragmentation_needed",))


def unsent(says: str, packet: Packet) -> Case:
    return Case(says, packet, DROP, "drop_ttl_expired", also=("router_error_unsent",))


WAN = [
    expired("to the outside the router is its WAN address", udp(7, 20000, ttl=1, **inbound()), OWN_EXTERNAL),
    expired("TCP", tcp(80, 20000, ttl=1, **inbound()), OWN_EXTERNAL),
    expired("TTL 0", udp(7, 20000, ttl=0, **inbound()), OWN_EXTERNAL),
    expired("a traced ping", echo(20000, ttl=1, **inbound()), OWN_EXTERNAL),
    expired("a ping's reply", echo(20000, ttl=1, reply=True, **inbound()), OWN_EXTERNAL),
    expired("on the router's own address", udp(7, 20000, ttl=1, **inbound(OWN_EXTERNAL)), OWN_EXTERNAL),
    expired("an odd length", ether(IP(ttl=1, **inbound()) / UDP(dport=20000) / Raw(b"odd")), OWN_EXTERNAL),
    expired(
        "options of IP",
        ether(IP(ttl=1, options=[IPOption(b"\x94\x04\x00\x00")], **inbound()) / UDP(dport=20000) / Raw(b"x" * 9)),
        OWN_EXTERNAL,
    ),
    expired("quoted up to 576 octets", long(udp(7, 20000, ttl=1, **inbound()), 1500), OWN_EXTERNAL),
    expired(
        "a first fragment", ether(IP(ttl=1, flags="MF", **inbound()) / UDP(dport=20000) / Raw(b"x" * 8)), OWN_EXTERNAL
    ),
    expired("too late before too big", long(udp(7, 20000, ttl=1, **inbound()), 1501), OWN_EXTERNAL),
    unsent("an error", error(udp(20016, 7), ttl=1, **inbound())),
    too_big("one octet too many", long(udp(7, 20000, **inbound()), 1501), OWN_EXTERNAL),
    too_big("TCP too big", long(tcp(80, 20000, **inbound()), 3400), OWN_EXTERNAL),
]

LAN = [
    expired("to a host the router is its LAN address", udp(20000, 7, ttl=1), ROUTER),
    expired("a traced ping", echo(20000, ttl=1), ROUTER),
    expired("hairpin", udp(20000, 20016, ttl=1, dst=EXTERNAL), ROUTER),
    expired("from the router's own address", tcp(20000, 80, ttl=1, src=OWN_EXTERNAL), ROUTER),
    expired("a plain device", udp(4000, 20016, ttl=1, src=DEVICE, dst=EXTERNAL), ROUTER),
    unsent("an error", error(udp(7, 20000, src=REMOTE, dst=EXTERNAL), src=EXTERNAL, dst=REMOTE, ttl=1)),
    too_big("out of the WAN", long(udp(20000, 7), 1501), ROUTER),
    too_big("hairpin too big", long(udp(20000, 20016, dst=EXTERNAL), 1501), ROUTER),
    Case("not its port: no error for a thief", udp(20016, 7, ttl=1), DROP, "drop_not_owner"),
]


@pytest.mark.parametrize("case", WAN, ids=str)
def test_answers_to_the_outside(router: RouterBench, case: Case) -> None:
    router.check("router_wan", case)


@pytest.mark.parametrize("case", LAN, ids=str)
def test_answers_to_hosts(router: RouterBench, case: Case) -> None:
    router.check("router_lan", case)


def test_a_later_fragment_gets_no_answer(router: RouterBench) -> None:
    first = ether(IP(flags="MF", id=9, **inbound()) / UDP(dport=20000) / Raw(b"x" * 8))
    later = ether(IP(id=9, frag=2, proto=17, ttl=1, **inbound()) / Raw(b"x" * 8))
    assert router.run("router_wan", first).verdict == REDIRECT
    router.check("router_wan", unsent("later", later))


def test_1500_octets_fit(router: RouterBench) -> None:
    packet = long(udp(7, 20000, **inbound()), 1500)
    outcome = router.run("router_wan", packet)
    assert (outcome.verdict, outcome.counted) == (REDIRECT, {"router_in": 1})
    with_checksum = bytes(packet) + b"FCS!"
    assert router.run("router_wan", with_checksum) == outcome, "what a frame has behind its packet is taken off"


@pytest.mark.parametrize(("octets", "last"), [(1501, 21), (2980, 20 + 1480), (2981, 21)])
def test_what_may_be_fragmented_is_cut(router: RouterBench, octets: int, last: int) -> None:
    """The pieces before the last one enter the interface again, which a test run does not show."""
    packet = long(udp(7, 20000, **inbound()), octets, dont_fragment=False)
    outcome = router.run("router_wan", packet)
    assert (outcome.verdict, outcome.counted) == (REDIRECT, {"router_cut": 1})
    start = (octets - 20) // 1480 * 1480 if (octets - 20) % 1480 else octets - 20 - 1480
    header = packet[IP].copy()
    header.remove_payload()
    header.len, header.frag, header.chksum, header.proto = last, start // 8, None, 17
    assert outcome.packet == bytes(ether(header / Raw(bytes(packet[IP].payload)[start:])))


def test_a_fragment_is_cut_into_fragments(router: RouterBench) -> None:
    first = ether(IP(flags="MF", id=9, **inbound()) / UDP(dport=20000) / Raw(b"x" * 8))
    later = ether(IP(flags="MF", id=9, frag=2, proto=17, **inbound()) / Raw(bytes(1504)))
    assert router.run("router_wan", first).verdict == REDIRECT
    outcome = router.run("router_wan", later)
    assert (outcome.verdict, outcome.counted) == (REDIRECT, {"router_cut": 1})
    left = IP(outcome.packet[14:])
    assert (left.len, left.frag, left.flags) == (44, 2 + 1480 // 8, "MF")


UNCUTTABLE = [
    ("options", ether(IP(options=[IPOption(b"\x94\x04\x00\x00")], **inbound()) / UDP(dport=20000) / Raw(bytes(1500)))),
    ("shorter than it says", ether(IP(len=2000, **inbound()) / UDP(dport=20000) / Raw(bytes(1700)))),
]


@pytest.mark.parametrize(("says", "packet"), UNCUTTABLE, ids=[says for says, _ in UNCUTTABLE])
def test_what_cannot_be_cut(router: RouterBench, says: str, packet: Packet) -> None:
    outcome = router.run("router_wan", packet)
    assert (outcome.verdict, outcome.counted) == (DROP, {"drop_too_big": 1}), says


def segments(size: int) -> bytes:
    """A ``struct __sk_buff`` that says so many octets for each segment."""
    return struct.pack("=176xI", size)


def test_segments_longer_together_than_their_header_can_say(router: RouterBench) -> None:
    packet = long(tcp(80, 20000, **inbound()), 3400)
    packet[IP].len = 0
    outcome = router.run("router_wan", packet, segments(1460))
    assert (outcome.verdict, outcome.counted) == (REDIRECT, {"router_in": 1})
    assert router.run("router_wan", packet).counted == {"drop_malformed": 1}


@pytest.mark.parametrize(("size", "fits"), [(1460, True), (1461, False), (1400, True)])
def test_segments_of_tcp(router: RouterBench, size: int, fits: bool) -> None:
    packet = long(tcp(80, 20000, **inbound()), 3400)
    outcome = router.run("router_wan", packet, segments(size))
    if fits:
        assert (outcome.verdict, outcome.counted) == (REDIRECT, {"router_in": 1})
    else:
        assert outcome.counted == {"drop_too_big": 1, "router_fragmentation_needed": 1}
        assert outcome.packet == bytes(router_error(packet, OWN_EXTERNAL, mtu=1500))


@pytest.mark.parametrize(("size", "fits"), [(1472, True), (1473, False)])
def test_segments_of_udp(router: RouterBench, size: int, fits: bool) -> None:
    """Several segments in one cannot be cut, whatever their sender allows."""
    packet = long(udp(7, 20000, **inbound()), 3400, dont_fragment=False)
    outcome = router.run("router_wan", packet, segments(size))
    assert outcome.counted == ({"router_in": 1} if fits else {"drop_too_big": 1, "router_fragmentation_needed": 1})


@pytest.mark.parametrize("kind", abi.ErrorKind)
def test_errors_are_limited_by_the_second_each_kind_apart(router: RouterBench, kind: abi.ErrorKind) -> None:
    late, big = udp(7, 20000, ttl=1, **inbound()), long(udp(7, 20000, **inbound()), 1501)
    many, other = (late, big) if kind is abi.ErrorKind.TIME_EXCEEDED else (big, late)
    counted = router.with_one_left(
        "error_budget",
        kind,
        abi.ERRORS_PER_SECOND,
        lambda: [router.run("router_wan", packet).counted for packet in (many, many, other)],
    )
    assert ["router_error_unsent" in one for one in counted] == [False, True, False]


def test_without_a_wan_address_the_address_asked_for_answers(router: RouterBench) -> None:
    config = abi.RouterConfig.from_buffer_copy(router.plane._maps["config"].get(bytes(4)) or b"")
    config.wan_address = abi.BigEndian4()
    router.plane._maps["config"].put(bytes(4), bytes(config))
    router.check("router_wan", expired("unnumbered", udp(7, 20000, ttl=1, **inbound()), EXTERNAL))


SPOOFED = [EXTERNAL, OWN_EXTERNAL, ROUTER, HOST_A, DEVICE]
MARTIAN = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"]


@pytest.mark.parametrize("source", MARTIAN)
@pytest.mark.parametrize("program", ["router_wan", "router_lan"])
def test_nobody_at_all_speaks_with_an_address_that_nobody_has(router: RouterBench, program: str, source: str) -> None:
    """RFC 1812, section 5.3.7."""
    for ttl in (64, 1):
        packet = udp(7, 20000, src=source, dst=EXTERNAL, ttl=ttl)
        router.check(program, Case("martian", packet, DROP, "drop_spoofed"))


@pytest.mark.parametrize("source", SPOOFED)
def test_nobody_outside_speaks_with_an_address_of_this_side(router: RouterBench, source: str) -> None:
    for external in (EXTERNAL, OWN_EXTERNAL):
        packet = udp(20001, 20000, src=source, dst=external)
        router.check("router_wan", Case("spoofed", packet, DROP, "drop_spoofed"))


def test_frames_to_others_are_none_of_our_business(router: RouterBench) -> None:
    """An interface in promiscuous mode shows them, too."""
    for mac in ("02:00:00:00:00:99", "ff:ff:ff:ff:ff:ff"):
        packet = udp(7, 20000, **inbound())
        packet.dst = mac
        router.check("router_wan", Case("to another", packet, -1))
        packet = udp(20000, 7)
        packet.dst = mac
        router.check("router_lan", Case("to another", packet, -1))


QUOTING = [
    ("a later fragment", error(ether(IP(src=EXTERNAL, dst=REMOTE, frag=3, proto=17) / Raw(b"x" * 20)), **inbound())),
    ("less than ports", error(udp(20000, 7), octets=24, **inbound())),
    ("GRE", error(ether(IP(src=EXTERNAL, dst=REMOTE, proto=47) / Raw(b"x" * 20)), **inbound())),
]


@pytest.mark.parametrize(("says", "packet"), QUOTING, ids=[says for says, _ in QUOTING])
def test_errors_that_speak_about_no_port(router: RouterBench, says: str, packet: Packet) -> None:
    router.check("router_wan", Case(says, packet, DROP, "drop_error_unmapped"))


def test_options_in_the_error_and_in_what_it_quotes(router: RouterBench) -> None:
    option = [IPOption(b"\x94\x04\x00\x00")]
    quoted = IP(src=EXTERNAL, dst=REMOTE, options=option) / TCP(sport=20000, dport=80)
    packet = error(ether(quoted), octets=32, **inbound())
    packet[IP].options = option
    del packet[IP].chksum
    less = packet.copy()
    less[IP].ttl -= 1
    router.check("router_wan", Case("options", packet, REDIRECT, "router_in", leaves=less))
