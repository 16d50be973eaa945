"""Every way of a packet through the host program of the loopback."""

from __future__ import annotations

import pytest
from bpf_bench import (
    DROP,
    EXTERNAL,
    HOST_A,
    PASS,
    REDIRECT,
    Case,
    HostBench,
    echo,
    error,
    ether,
    tcp,
    udp,
)
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

LOOP = [
    Case("from us to us", udp(20001, 20000, dst=EXTERNAL), PASS, "host_local"),
    Case("from our LAN address to our own port", udp(4000, 20000, src=HOST_A, dst=EXTERNAL), PASS, "host_local"),
    Case("to another host's port", udp(20001, 20016, dst=EXTERNAL), REDIRECT, "host_hairpin"),
    Case("to another host's port, TCP", tcp(20001, 20016, dst=EXTERNAL, flags="S"), REDIRECT, "host_hairpin"),
    Case("to our own port from one to translate", udp(4000, 20000, dst=EXTERNAL), REDIRECT, "host_hairpin"),
    Case("to a port of our pool", udp(20001, 30001, dst=EXTERNAL), REDIRECT, "host_hairpin"),
    Case("a ping comes back to us anyway", echo(77, dst=EXTERNAL), PASS, "host_local"),
    Case(
        "an error to another host",
        error(udp(20016, 20001, dst=EXTERNAL), src=EXTERNAL, dst=EXTERNAL),
        REDIRECT,
        "host_hairpin",
    ),
    Case(
        "an error to ourselves",
        error(udp(20000, 20001, dst=EXTERNAL), src=EXTERNAL, dst=EXTERNAL),
        PASS,
        "host_local",
    ),
    Case(
        "a later fragment without a first one",
        ether(IP(src=EXTERNAL, dst=EXTERNAL, proto=17, frag=2) / Raw(b"x" * 16)),
        DROP,
        "drop_fragment_unknown",
    ),
    Case(
        "a header cut short",
        ether(IP(src=EXTERNAL, dst=EXTERNAL, proto=17) / Raw(b"\x08\x00")),
        DROP,
        "drop_malformed",
    ),
    Case("from the loopback address: untouched", udp(4000, 20016, src="127.0.0.1", dst=EXTERNAL), PASS),
    Case("loopback traffic: untouched", udp(4000, 4001, src="127.0.0.1", dst="127.0.0.1"), PASS),
]


@pytest.mark.parametrize("case", LOOP, ids=str)
def test_leaving_the_loopback(host: HostBench, case: Case) -> None:
    host.check("host_loop", case)


@pytest.mark.parametrize("target", [20000, 20016], ids=["to us", "to another host"])
def test_later_fragments_on_the_loopback_follow_the_first(host: HostBench, target: int) -> None:
    verdict, counted = (PASS, "host_local") if target == 20000 else (REDIRECT, "host_hairpin")
    first = IP(src=EXTERNAL, dst=EXTERNAL, id=5, flags="MF") / UDP(sport=20001, dport=target, len=48, chksum=1)
    middle = IP(src=EXTERNAL, dst=EXTERNAL, id=5, proto=17, flags="MF", frag=3) / Raw(b"m" * 16)
    last = IP(src=EXTERNAL, dst=EXTERNAL, id=5, proto=17, frag=5) / Raw(b"l" * 8)
    for fragment in (first / Raw(b"f" * 16), middle, last):
        host.check("host_loop", Case("a fragment", ether(fragment), verdict, counted))
    # The datagram is complete, so the same identification is another datagram's now.
    host.check("host_loop", Case("one too many", ether(last), DROP, "drop_fragment_unknown"))


def test_fragments_on_the_loopback_that_contradict_the_first(host: HostBench) -> None:
    ends = {"src": EXTERNAL, "dst": EXTERNAL, "id": 5}

    def first(port: int) -> IP:
        return ether(IP(flags="MF", **ends) / UDP(sport=20001, dport=port, len=48, chksum=0) / Raw(bytes(16)))

    def later(offset: int) -> IP:
        return ether(IP(proto=17, frag=offset, **ends) / Raw(bytes(8)))

    host.check("host_loop", Case("to another host", first(20016), REDIRECT, "host_hairpin"))
    host.check("host_loop", Case("over the ports", later(1), DROP, "drop_fragment_overlap"))
    host.check("host_loop", Case("behind them", later(4), REDIRECT, "host_hairpin"))
    host.check("host_loop", Case("to ourselves, all of a sudden", first(20000), DROP, "drop_fragment_overlap"))
