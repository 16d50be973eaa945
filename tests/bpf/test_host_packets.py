"""Every way of a packet through the host programs of the LAN interface, and every reason to drop one."""

from __future__ import annotations

import pytest
from bpf_bench import (
    DROP,
    EXTERNAL,
    HOST_A,
    HOST_B,
    PASS,
    REDIRECT,
    REMOTE,
    Case,
    HostBench,
    echo,
    error,
    ether,
    refusal,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, GRE
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from dnat.types import Protocol

TCP_, UDP_, ICMP_ = Protocol.TCP, Protocol.UDP, Protocol.ICMP


def udplite(sport: int, dport: int, checksum: int) -> IP:
    octets = b"".join(number.to_bytes(2, "big") for number in (sport, dport, 8, checksum))
    return ether(IP(src=EXTERNAL, dst=REMOTE, proto=136, flags="DF") / Raw(octets + b"words"))


COMES_OUT_ZERO = 0xFFFF - (30002 - 4000)
"""A checksum that is zero once 30002 has become 4000."""
REFUSED = (REDIRECT, "drop_not_translatable")


def sctp(sport: int) -> IP:
    return ether(IP(src=EXTERNAL, dst=REMOTE, flags="DF") / SCTP(sport=sport))


def dccp(sport: int) -> IP:
    """A DCCP-Request, as far as ports go."""
    return ether(IP(src=EXTERNAL, dst=REMOTE, proto=33, flags="DF") / Raw(sport.to_bytes(2, "big") + bytes(18)))


def sctp_in(dport: int) -> IP:
    return ether(IP(src=REMOTE, dst=EXTERNAL) / SCTP(dport=dport))


def gre() -> IP:
    return ether(IP(src=EXTERNAL, dst=REMOTE, flags="DF") / GRE() / Raw(b"inside"))


def with_options(packet: IP) -> IP:
    packet[IP].options = b"\x94\x04\x00\x00" * 2
    return packet


def damaged(packet: IP) -> IP:
    """With another TTL than its checksum says."""
    copy = ether(IP(bytes(packet[IP])))
    copy[IP].ttl -= 1
    return copy


OUT = [
    Case("native UDP passes", udp(20000, 7), PASS, "host_out_native"),
    Case("native TCP passes", tcp(20015, 80), PASS, "host_out_native"),
    Case("native ICMP identifier passes", echo(20001), PASS, "host_out_native"),
    Case("native SCTP passes", sctp(20003), PASS, "host_out_native"),
    Case("native DCCP passes", dccp(20003), PASS, "host_out_native"),
    Case("foreign SCTP is refused", sctp(5000), *REFUSED, leaves=refusal(sctp(5000)), also=("host_refused",)),
    Case("foreign DCCP is refused", dccp(5000), *REFUSED, leaves=refusal(dccp(5000)), also=("host_refused",)),
    Case("GRE has no ports", gre(), *REFUSED, leaves=refusal(gre()), also=("host_refused",)),
    Case(
        "a refusal quotes IP options",
        with_options(sctp(5000)),
        *REFUSED,
        leaves=refusal(with_options(sctp(5000))),
        also=("host_refused",),
    ),
    Case(
        "ICMP that is no query is dropped in silence",
        ether(IP(src=EXTERNAL, dst=REMOTE, flags="DF") / ICMP(type="router-solicitation")),
        DROP,
        "drop_not_translatable",
    ),
    Case(
        "UDP is translated",
        udp(4000, 53),
        PASS,
        "host_out_translated",
        leaves=udp(30002, 53),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "a binding serves every destination",
        udp(4000, 99, dst="203.0.113.77"),
        PASS,
        "host_out_translated",
        leaves=udp(30002, 99, dst="203.0.113.77"),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "UDP without checksum stays without",
        udp(4000, 53, chksum=0),
        PASS,
        "host_out_translated",
        leaves=udp(30002, 53, chksum=0),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "UDP-Lite shares the bindings of UDP",
        udplite(4000, 53, 0x1234),
        PASS,
        "host_out_translated",
        # One's complement: 0x1234 - (30002 - 4000).
        leaves=udplite(30002, 53, (0x1234 - (30002 - 4000)) % 0xFFFF),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "IP options are stepped over",
        with_options(udp(4000, 53)),
        PASS,
        "host_out_translated",
        leaves=with_options(udp(30002, 53)),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "TCP is translated",
        tcp(4000, 80),
        PASS,
        "host_out_translated",
        leaves=tcp(30001, 80),
        bindings={(TCP_, 4000): 30001},
    ),
    Case(
        "an ICMP identifier is translated",
        echo(77),
        PASS,
        "host_out_translated",
        leaves=echo(30001),
        bindings={(ICMP_, 77): 30001},
    ),
    Case(
        "the answer to a ping that came for a translated identifier",
        echo(77, reply=True),
        PASS,
        "host_out_translated",
        leaves=echo(30001, reply=True),
        bindings={(ICMP_, 77): 30001},
    ),
    Case(
        "a port of the pool, used by its number, stays what it is",
        udp(30001, 53),
        PASS,
        "host_out_translated",
        also=("host_binding_created",),
        creates={(UDP_, 30001): 30001},
    ),
    Case(
        "to a LAN host with the shared address: translated too",
        udp(4000, 53, dst=HOST_B),
        PASS,
        "host_out_translated",
        leaves=udp(30002, 53, dst=HOST_B),
        bindings={(UDP_, 4000): 30002},
    ),
    Case("LAN to LAN passes untouched", udp(4000, 53, src=HOST_A, dst=HOST_B), PASS),
    Case("multicast stays on the LAN and passes untouched", udp(5353, 5353, dst="224.0.0.251"), PASS),
    Case("IPv6 passes untouched", ether(IPv6() / UDP()), PASS),
    Case("ARP passes untouched", ether(ARP()), PASS),
    Case(
        "an error about a native port passes",
        error(udp(9, 20000, src=REMOTE, dst=EXTERNAL), src=EXTERNAL, dst=REMOTE),
        PASS,
        "host_out_native",
    ),
    Case(
        "an error about a translated UDP port",
        error(udp(9, 4000, src=REMOTE, dst=EXTERNAL), src=EXTERNAL, dst=REMOTE),
        PASS,
        "host_out_translated",
        leaves=error(udp(9, 30002, src=REMOTE, dst=EXTERNAL), src=EXTERNAL, dst=REMOTE),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "an error about a port that is nobody's",
        error(udp(9, 4000, src=REMOTE, dst=EXTERNAL), src=EXTERNAL, dst=REMOTE),
        DROP,
        "drop_error_unbound",
    ),
    Case(
        "an error about a packet that was not for us",
        error(udp(9, 4000, src=REMOTE, dst=HOST_A), src=EXTERNAL, dst=REMOTE),
        DROP,
        "drop_error_unbound",
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "an error about a packet that was not for us, with a binding of port 0",
        error(udp(9, 53, src=REMOTE, dst=HOST_A), src=EXTERNAL, dst=REMOTE),
        DROP,
        "drop_error_unbound",
        bindings={(UDP_, 0): 30002},
    ),
    Case(
        "a UDP header cut short",
        ether(IP(src=EXTERNAL, dst=REMOTE, proto=17) / Raw(b"\x4e\x20\x00\x07")),
        DROP,
        "drop_malformed",
    ),
    Case(
        "a first fragment that hides the TCP checksum",
        ether(IP(src=EXTERNAL, dst=REMOTE, proto=6, flags="MF") / Raw(bytes(TCP(sport=4000))[:16])),
        DROP,
        "drop_malformed",
    ),
    Case(
        "a later fragment carries no port",
        ether(IP(src=EXTERNAL, dst=REMOTE, proto=17, frag=2, id=1) / Raw(b"x" * 16)),
        PASS,
        "host_out_fragment",
        leaves=ether(IP(src=EXTERNAL, dst=REMOTE, proto=17, frag=2, id=20001) / Raw(b"x" * 16)),
        also=("host_id_replaced",),
    ),
]

IN = [
    Case("native UDP", udp(7, 20000, src=REMOTE, dst=EXTERNAL), PASS, "host_in_native"),
    Case("an unknown port is the stack's business", udp(7, 9, src=REMOTE, dst=EXTERNAL), PASS, "host_in_native"),
    Case(
        "an unsolicited SYN to a port of the pool gets no answer (RFC 5382 REQ-4)",
        tcp(80, 30002, src=REMOTE, dst=EXTERNAL, flags="S"),
        DROP,
        "drop_unbound",
    ),
    Case("a ping for an identifier of the pool", echo(30002, src=REMOTE, dst=EXTERNAL), DROP, "drop_unbound"),
    Case(
        "an error about a port of the pool that nobody uses",
        error(udp(30002, 53), src=REMOTE, dst=EXTERNAL),
        DROP,
        "drop_unbound",
    ),
    Case(
        "our own refusal, which quotes a local port that happens to be in the pool",
        refusal(udp(30002, 53)),
        PASS,
        "host_local",
        bindings={(UDP_, 4000): 30002},
    ),
    Case("native SCTP comes in", sctp_in(20003), PASS, "host_in_native"),
    Case(
        "translated UDP",
        udp(53, 30002, src=REMOTE, dst=EXTERNAL),
        PASS,
        "host_in_translated",
        leaves=udp(53, 4000, src=REMOTE, dst=EXTERNAL),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "anybody may send to a translated port (endpoint-independent filtering)",
        udp(1, 30002, src="192.0.2.1", dst=EXTERNAL),
        PASS,
        "host_in_translated",
        leaves=udp(1, 4000, src="192.0.2.1", dst=EXTERNAL),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "a UDP binding says nothing about TCP",
        tcp(80, 30002, src=REMOTE, dst=EXTERNAL),
        DROP,
        "drop_unbound",
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "translated TCP",
        tcp(80, 30002, src=REMOTE, dst=EXTERNAL),
        PASS,
        "host_in_translated",
        leaves=tcp(80, 4000, src=REMOTE, dst=EXTERNAL),
        bindings={(TCP_, 4000): 30002},
    ),
    Case(
        "the answer to a translated ping",
        echo(30002, src=REMOTE, dst=EXTERNAL, reply=True),
        PASS,
        "host_in_translated",
        leaves=echo(77, src=REMOTE, dst=EXTERNAL, reply=True),
        bindings={(ICMP_, 77): 30002},
    ),
    Case(
        "a ping for a translated identifier",
        echo(30002, src=REMOTE, dst=EXTERNAL),
        PASS,
        "host_in_translated",
        leaves=echo(77, src=REMOTE, dst=EXTERNAL),
        bindings={(ICMP_, 77): 30002},
    ),
    Case(
        "an error about translated UDP, eight octets quoted",
        error(udp(30002, 53), src="192.0.2.9", dst=EXTERNAL, octets=28),
        PASS,
        "host_in_translated",
        leaves=error(udp(4000, 53), src="192.0.2.9", dst=EXTERNAL, octets=28),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "an error about translated UDP without checksum",
        error(udp(30002, 53, chksum=0), src=REMOTE, dst=EXTERNAL),
        PASS,
        "host_in_translated",
        leaves=error(udp(4000, 53, chksum=0), src=REMOTE, dst=EXTERNAL),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "a UDP checksum that comes out as zero is written as its other zero",
        udp(53, 30002, src=REMOTE, dst=EXTERNAL, chksum=COMES_OUT_ZERO),
        PASS,
        "host_in_translated",
        leaves=udp(53, 4000, src=REMOTE, dst=EXTERNAL, chksum=0xFFFF),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "a quoted UDP checksum, too",
        error(udp(30002, 53, chksum=COMES_OUT_ZERO), src=REMOTE, dst=EXTERNAL),
        PASS,
        "host_in_translated",
        leaves=error(udp(4000, 53, chksum=0xFFFF), src=REMOTE, dst=EXTERNAL),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "an error about translated TCP, checksum quoted",
        error(tcp(30002, 80), src=REMOTE, dst=EXTERNAL),
        PASS,
        "host_in_translated",
        leaves=error(tcp(4000, 80), src=REMOTE, dst=EXTERNAL),
        bindings={(TCP_, 4000): 30002},
    ),
    Case(
        "an error about translated TCP, checksum cut off",
        error(tcp(30002, 80), src=REMOTE, dst=EXTERNAL, octets=28),
        PASS,
        "host_in_translated",
        leaves=error(tcp(4000, 80), src=REMOTE, dst=EXTERNAL, octets=28),
        bindings={(TCP_, 4000): 30002},
    ),
    Case(
        "an error that quotes IP options",
        error(with_options(udp(30002, 53)), src=REMOTE, dst=EXTERNAL, kind=11),
        PASS,
        "host_in_translated",
        leaves=error(with_options(udp(4000, 53)), src=REMOTE, dst=EXTERNAL, kind=11),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "an error about a translated ping",
        error(echo(30002), src=REMOTE, dst=EXTERNAL, kind=11),
        PASS,
        "host_in_translated",
        leaves=error(echo(77), src=REMOTE, dst=EXTERNAL, kind=11),
        bindings={(ICMP_, 77): 30002},
    ),
    Case(
        "an error about a packet that we never sent is left alone",
        error(udp(30002, 53, src="192.0.2.5"), src=REMOTE, dst=EXTERNAL),
        PASS,
        "host_in_native",
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "an error that quotes a damaged header",
        error(damaged(udp(30002, 53)), src=REMOTE, dst=EXTERNAL),
        DROP,
        "drop_quote_damaged",
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "an error that quotes a damaged header, about a port of our own",
        error(damaged(with_options(udp(20000, 53))), src=REMOTE, dst=EXTERNAL),
        DROP,
        "drop_quote_damaged",
    ),
    Case(
        "an error that quotes too little is left alone",
        error(udp(30002, 53), src=REMOTE, dst=EXTERNAL, octets=24),
        PASS,
        "host_in_native",
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "a first fragment is translated",
        ether(IP(src=REMOTE, dst=EXTERNAL, flags="MF") / UDP(sport=9, dport=30002, len=99, chksum=77)),
        PASS,
        "host_in_translated",
        leaves=ether(
            IP(src=REMOTE, dst=EXTERNAL, flags="MF")
            / UDP(sport=9, dport=4000, len=99, chksum=(77 + 30002 - 4000) % 0xFFFF)
        ),
        bindings={(UDP_, 4000): 30002},
    ),
    Case(
        "a later fragment passes",
        ether(IP(src=REMOTE, dst=EXTERNAL, proto=17, frag=2) / Raw(b"x" * 16)),
        PASS,
        "host_in_native",
    ),
    Case(
        "a header cut short",
        ether(IP(src=REMOTE, dst=EXTERNAL, proto=1) / Raw(b"\x08\x00")),
        DROP,
        "drop_malformed",
    ),
    Case("to the LAN address: untouched", udp(7, 30002, src=HOST_B, dst=HOST_A), PASS),
    Case("IPv6 passes untouched", ether(IPv6() / UDP()), PASS),
]


@pytest.mark.parametrize("case", OUT, ids=str)
def test_leaving_the_lan_interface(host: HostBench, case: Case) -> None:
    host.check("host_out", case)


@pytest.mark.parametrize("case", IN, ids=str)
def test_arriving_at_the_lan_interface(host: HostBench, case: Case) -> None:
    host.check("host_in", case)


def test_without_configuration_everything_passes(host: HostBench) -> None:
    host.plane._maps["config"].put(bytes(4), bytes(host.plane._maps["config"].value_size))
    for program in ("host_out", "host_in", "host_loop"):
        host.check(program, Case("not configured", udp(4000, 20016, dst=EXTERNAL), PASS))


def test_timestamp_queries_are_translated_like_pings(host: HostBench) -> None:
    host.bind(ICMP_, 77, 30001)
    for program, kind, before, after in (
        ("host_out", "timestamp-request", 77, 30001),
        ("host_in", "timestamp-reply", 30001, 77),
    ):
        ends = {"src": EXTERNAL, "dst": REMOTE} if program == "host_out" else {"src": REMOTE, "dst": EXTERNAL}
        outcome = host.run(program, ether(IP(**ends, flags="DF") / ICMP(type=kind, id=before)))
        assert outcome.packet == bytes(ether(IP(**ends, flags="DF") / ICMP(type=kind, id=after)))
