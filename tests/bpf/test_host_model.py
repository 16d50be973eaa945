"""The host programs against the model: packets valid, nearly valid and not at all."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from bpf_bench import EXTERNAL, HOST_A, REMOTE, HostBench, echo, error, ether, refusal, tcp, udp
from bulk import Mutator, Runner
from host_model import ICMP, HostModel, Wrong
from scapy.layers.inet import ICMP as Icmp
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, GRE
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from dnat.dataplane import abi
from dnat.system import netns
from dnat.types import PortRange, Protocol

PACKETS = int(os.environ.get("DNAT_MODEL_PACKETS", "1000000")) // 2
"""The rest is for the router."""
ROUND = 5000
"""Packets until ports and bindings are others."""
OUT = {"src": EXTERNAL, "dst": REMOTE}
IN = {"src": REMOTE, "dst": EXTERNAL}


def seeds(ends: dict[str, str], other: dict[str, str]) -> list[bytes]:
    """Valid packets of every kind in one direction; ``other`` is the way back."""
    options = IP(**ends, options=[b"\x94\x04\x00\x00"])
    packets: list[Packet] = [
        udp(4000, 53, **ends),
        udp(4000, 53, **ends, chksum=0),
        tcp(4000, 80, **ends),
        tcp(4000, 80, **ends, flags="S"),
        tcp(4000, 80, **ends, flags="FA"),
        tcp(4000, 80, **ends, flags="R"),
        echo(77, **ends),
        echo(77, **ends, reply=True),
        ether(IP(**ends) / Icmp(type="timestamp-request", id=78)),
        ether(IP(**ends) / UDP(sport=4001, dport=9) / Raw(b"odd")),
        ether(IP(**ends, flags="MF") / UDP(sport=4001, dport=9, len=99) / Raw(bytes(16))),
        ether(IP(**ends, proto=17, frag=2) / Raw(bytes(16))),
        ether(options / UDP(sport=4002, dport=9) / Raw(b"options")),
        ether(options / TCP(sport=4002, dport=9)),
        ether(IP(**ends, proto=136) / Raw(bytes.fromhex("0fa0003500081234") + b"lite")),
        ether(IP(**ends) / SCTP(sport=4000, dport=9)),
        ether(IP(**ends) / GRE() / Raw(b"inside")),
        ether(IP(**ends) / Icmp(type="redirect")),
        ether(ARP()),
        udp(4000, 53, src=HOST_A, dst=REMOTE),
        udp(4000, 53, src=EXTERNAL, dst="224.0.0.251"),
        refusal(udp(4000, 53)),
    ]
    for quoted in (udp(53, 4000, **other), udp(53, 4000, **other, chksum=0), tcp(80, 4000, **other), echo(77, **other)):
        for octets in (28, 48, None):
            packets.append(error(quoted, **ends, octets=octets))
        packets.append(error(quoted, **ends, kind=11))
    quoted = ether(IP(**other, options=[b"\x94\x04\x00\x00"]) / UDP(sport=53, dport=4000) / Raw(b"options"))
    return [bytes(packet) for packet in [*packets, error(quoted, **ends)]]


@pytest.fixture
def own_namespace() -> Iterator[None]:
    """Where no local socket holds a port."""
    name = f"bpf{os.getpid()}-model"
    netns.create(name)
    with netns.enter(name):
        yield
    netns.delete(name)


def random_host(host: HostBench, chance: random.Random) -> HostModel:
    """New ports for the bench, and a model of it."""
    host.reset()
    first = chance.randrange(20000, 20100)
    native = [(PortRange(first, first + chance.randrange(40)), chance.choice(list(Protocol)))]
    pool, start = [], chance.randrange(30000, 30040)
    for _ in range(chance.randrange(4)):
        last = start + chance.choice([0, 1, 5, 31])
        pool.append((PortRange(start, last), chance.choice([Protocol.ANY, Protocol.ANY, *Protocol])))
        start = last + chance.randrange(1, 20)
    host.plane.set_ports(native, pool)
    host.plane.set_exhausted(for_good := chance.random() < 0.5)

    def expand(ranges: list[tuple[PortRange, Protocol]]) -> set[tuple[int, int]]:
        return {
            (int(port_class), port)
            for ports, protocol in ranges
            for port in range(ports.first, ports.last + 1)
            for port_class in abi.CLASSES_OF[protocol]
        }

    whole = sorted(
        port
        for ports, protocol in (*native, *pool)
        if protocol is Protocol.ANY
        for port in range(ports.first, ports.last + 1)
    )
    external = IPv4Address(EXTERNAL).packed
    # Ports of the fourth class are never drawn from.
    drawn = {each for each in expand(pool) if each[0] <= ICMP}
    return HostModel(external, expand(native), drawn, whole, for_good)


def test_packets_are_treated_as_the_model_says(host: HostBench, own_namespace: None) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    ports = [
        4000,
        4001,
        4002,
        4003,
        4000 ^ 1024,
        4000 + 4096,
        9,
        53,
        *range(19998, 20140, 7),
        *range(29990, 30140),
        65535,
        0,
    ]
    ways = {
        "host_out": (Runner(host._programs["host_out"]), Mutator(seed, seeds(OUT, IN), ports)),
        "host_in": (Runner(host._programs["host_in"]), Mutator(seed + 1, seeds(IN, OUT), ports)),
    }
    for number in range(0, PACKETS, ROUND):
        model = random_host(host, chance)
        before = host.plane.counters()
        for _ in range(ROUND):
            program = "host_out" if chance.random() < 0.5 else "host_in"
            run, packets = ways[program]
            frame = packets.next()
            verdict, left = run(frame)
            try:
                (model.check_out if program == "host_out" else model.check_in)(frame, verdict, left)
            except Wrong as wrong:
                pytest.fail(
                    f"{program}, seed {seed}, round {number // ROUND}: {wrong}\n{frame.hex()}\n{left.hex()}\n{model}"
                )
        counted = {name: value - before[name] for name, value in host.plane.counters().items()}
        assert {name: value for name, value in counted.items() if value} == +model.counted, f"seed {seed}"
        found = {(int(key), local): port for (key, local), port in _bindings(host).items()}
        assert found == model.outward, f"seed {seed}"


def _bindings(host: HostBench) -> dict[tuple[int, int], int]:
    return {(abi.CLASSES_OF[protocol][0], local): port for (protocol, local), port in host.bound().items()}
