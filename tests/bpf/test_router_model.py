"""The router programs against the model, at TC and at XDP before TC: packets valid, nearly valid and not at all."""

from __future__ import annotations

import os
import random
import struct
import time
from ipaddress import IPv4Address

import pytest
from bpf_bench import (
    EXTERNAL,
    HOST_A,
    HOST_B,
    LAN,
    MAC_A,
    MAC_B,
    MACS,
    OWN_EXTERNAL,
    REDIRECT,
    REMOTE,
    ROUTER,
    RouterBench,
    echo,
    error,
    ether,
    mac,
    tcp,
    udp,
)
from bulk import Mutator, Runner
from host_model import Wrong
from router_model import RouterModel
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, GRE, Dot1Q
from scapy.packet import Packet, Raw
from xdp_bench import XDP_PASS, RouterXdpBench

from dnat.dataplane import abi
from dnat.system import netns
from dnat.types import Owner, PortRange, Protocol

PACKETS = int(os.environ.get("DNAT_MODEL_PACKETS", "1000000")) // 4
"""Of each of the two; the rest is for the host."""
ROUND = 1000
"""Packets until owners are others, and fragments forgotten."""
PATIENCE = 0.8
"""Seconds within which no fragment is too old."""
HOST_C = "10.66.0.13"
"""Its link address is not known."""
PORTS = range(19990, 20050)


def seeds(ends: dict[str, str], back: dict[str, str], source: str) -> list[bytes]:
    """Valid packets of every kind; ``back`` is the other way round."""

    def made(layers: Packet) -> Packet:
        return ether(layers, source=source)

    def header(**fields: object) -> IP:
        return IP(**ends, **fields)

    packets = [
        udp(20001, 20017, **ends),
        udp(20001, 20017, **ends, chksum=0),
        tcp(20001, 20017, **ends),
        tcp(20001, 20017, **ends, flags="S"),
        echo(20001, **ends),
        echo(20001, **ends, reply=True),
        made(header(ttl=1) / UDP(sport=20001, dport=20017) / Raw(b"late")),
        made(header(flags="MF", id=7) / UDP(sport=20001, dport=20017, len=48) / Raw(bytes(16))),
        made(header(flags="MF", id=7) / UDP(sport=20002, dport=20018, len=48) / Raw(bytes(16))),
        made(header(id=7, proto=17, frag=3) / Raw(bytes(24))),
        made(header(id=7, proto=17, frag=1, flags="MF") / Raw(bytes(24))),
        made(header(id=8, proto=17, frag=190) / Raw(bytes(24))),
        made(header(options=[b"\x94\x04\x00\x00"]) / TCP(sport=20001, dport=20017)),
        made(header(flags="DF") / UDP(sport=20001, dport=20017) / Raw(bytes(1480))),
        made(header() / UDP(sport=20001, dport=20017) / Raw(bytes(1700))),
        made(header(proto=136) / Raw(bytes.fromhex("4e214e3100081234") + b"lite")),
        made(header(proto=33) / Raw(bytes.fromhex("4e214e31") + bytes(12))),
        made(header(proto=132) / Raw(bytes.fromhex("4e214e31") + bytes(12))),
        made(header() / GRE() / Raw(b"inside")),
        made(header() / ICMP(type="redirect")),
        made(ARP()),
        made(Dot1Q(vlan=7) / header() / UDP(sport=20001, dport=20017)),
        *(error(quoted, **ends, octets=octets) for quoted in _quotable(back) for octets in (28, None)),
        *(error(quoted, **ends, kind=11, ttl=1) for quoted in _quotable(back)),
    ]
    for packet in packets:
        packet.src = source
    return [bytes(packet) for packet in packets]


def _quotable(back: dict[str, str]) -> list[Packet]:
    return [udp(20017, 20001, **back), tcp(20017, 20001, **back), echo(20001, **back)]


def ways() -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {"router_wan": [], "router_lan": [], "router_loop": []}

    def add(program: str, source: str, destination: str, link: str = MAC_A) -> None:
        ends, back = {"src": source, "dst": destination}, {"src": destination, "dst": source}
        found[program] += seeds(ends, back, link)

    for external in (EXTERNAL, OWN_EXTERNAL):
        add("router_wan", REMOTE, external)
        add("router_lan", external, REMOTE)
        add("router_lan", external, REMOTE, MAC_B)
        add("router_lan", external, external)
        add("router_loop", external, external)
    add("router_wan", EXTERNAL, OWN_EXTERNAL)
    add("router_wan", HOST_A, EXTERNAL)
    add("router_wan", REMOTE, "198.51.100.77")
    add("router_lan", EXTERNAL, OWN_EXTERNAL)
    for destination in (ROUTER, HOST_B, "224.0.0.251", "127.0.0.1"):
        add("router_lan", EXTERNAL, destination)
    add("router_lan", HOST_A, EXTERNAL)
    add("router_lan", HOST_A, REMOTE)
    add("router_loop", "127.0.0.1", EXTERNAL)
    return found


class Subject:
    """The programs, and a model of the same router."""

    def __init__(self, router: RouterBench, chance: random.Random) -> None:
        self._router, self._chance = router, chance
        self._owners: list[Owner] = []
        self._tc = {name: Runner(fd) for name, fd in router._programs.items()}
        at_xdp = router._at_xdp if isinstance(router, RouterXdpBench) else {}
        self._xdp = {name.removesuffix("_xdp"): Runner(fd) for name, fd in at_xdp.items()}
        router.plane.set_owners([])

    def start_round(self) -> RouterModel:
        """Other owners, no fragments, no errors sent yet."""
        plane = self._router.plane
        for name in ("fragments", "waiting"):
            for key in list(plane._maps[name].keys()):
                plane._maps[name].delete(key)
        former, self._owners = self._owners, self._random_owners()
        plane.apply(add=self._owners, remove=former)
        plane.set_macs({IPv4Address(HOST_A): mac(MAC_A), IPv4Address(HOST_B): mac(MAC_B)})
        plane.drain_offences()
        self.allow_errors()
        owners = {
            (owner.address.packed, int(port_class), port): str(owner.host)
            for owner in self._owners
            for port in range(owner.ports.first, owner.ports.last + 1)
            for port_class in abi.CLASSES_OF[owner.protocol]
        }
        before = plane.counters()["router_fragment_held"]
        return RouterModel(
            externals={_packed(EXTERNAL): False, _packed(OWN_EXTERNAL): True},
            local=frozenset({_packed(ROUTER), _packed(OWN_EXTERNAL)}),
            lan=LAN,
            owners=owners,
            macs={HOST_A: mac(MAC_A), HOST_B: mac(MAC_B)},
            says={"router_wan": _packed(OWN_EXTERNAL), "router_lan": _packed(ROUTER)},
            held=lambda: plane.counters()["router_fragment_held"] - before,
        )

    def allow_errors(self) -> None:
        for kind in abi.ErrorKind:
            self._router.plane._maps["error_budget"].put(struct.pack("=I", kind), bytes(abi.OffenceBudget()))

    def _random_owners(self) -> list[Owner]:
        owners, chance = [], self._chance
        for external in (EXTERNAL, OWN_EXTERNAL):
            start = PORTS.start + chance.randrange(4)
            while start < PORTS.stop:
                last = start + chance.choice([0, 1, 7, 15])
                host = IPv4Address(chance.choice([HOST_A, HOST_B, HOST_C]))
                protocol = chance.choice([Protocol.ANY, Protocol.ANY, Protocol.TCP, Protocol.UDP, Protocol.ICMP])
                owners.append(Owner(IPv4Address(external), PortRange(start, last), protocol, host))
                start = last + chance.randrange(1, 6)
        return owners

    def run(self, program: str, frame: bytes) -> tuple[int, bytes, str | None]:
        """Verdict, what left with its former link addresses, and to whom the programs addressed it."""
        if program in self._xdp:
            verdict, left = self._xdp[program](frame)
            if verdict != XDP_PASS:
                return REDIRECT, *self._addressed(frame, left)
            assert left == frame
        verdict, left = self._tc[program](frame)
        if verdict != REDIRECT or left[:12] == frame[:12]:
            return verdict, left, None
        return verdict, *self._addressed(frame, left)

    def _addressed(self, frame: bytes, left: bytes) -> tuple[bytes, str]:
        (receiver,) = (address for address, known in MACS.items() if mac(known) == left[:6])
        assert left[6:12] == (self._router.wan_mac if receiver == REMOTE else self._router.lan_mac)
        return frame[:12] + left[12:], "outside" if receiver == REMOTE else receiver


def _packed(address: str) -> bytes:
    return IPv4Address(address).packed


def check(router: RouterBench) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    mutators = {
        name: Mutator(seed + number, frames, [*PORTS, 0, 9, 53, 65535])
        for number, (name, frames) in enumerate(ways().items())
    }
    programs = ["router_wan", "router_lan", "router_lan", "router_wan", "router_loop"]
    subject = Subject(router, chance)
    judged = 0
    while judged < PACKETS:
        model, before, started = subject.start_round(), router.plane.counters(), time.monotonic()
        wrong = ""
        for number in range(ROUND):
            program = programs[int(chance.random() * len(programs))]
            frame = mutators[program].next()
            verdict, left, receiver = subject.run(program, frame)
            try:
                model.check(program, frame, verdict, left, receiver)
            except Wrong as found:
                wrong = f"{program}, packet {number}: {found}\n{frame.hex()}\n{left.hex()}\n{model}"
                break
        if not wrong:
            counted = {name: value - before[name] for name, value in router.plane.counters().items()}
            # By the second, which the model does not know.
            unreported = counted.pop("router_offence_unreported", 0)
            assert unreported <= counted["drop_not_owner"]
            raised = {name: value for name, value in counted.items() if value}
            if raised != +model.counted:
                wrong = f"{raised}\nis not\n{+model.counted}"
        # A machine that paused may have made fragments too old.
        if time.monotonic() - started > PATIENCE:
            continue
        assert not wrong, f"seed {seed}, after {judged} packets: {wrong}"
        judged += ROUND


def test_packets_at_tc_are_treated_as_the_model_says(router_pins: object, wires: str) -> None:
    with netns.enter(wires), RouterBench(router_pins) as router:  # type: ignore[arg-type]
        check(router)


def test_packets_at_xdp_and_tc_are_treated_as_the_model_says(router_xdp: RouterXdpBench) -> None:
    check(router_xdp)


def test_the_model_notices_a_wrong_receiver(router_xdp: RouterXdpBench) -> None:
    """A test of the judge: the right packet to the wrong host is wrong."""
    subject = Subject(router_xdp, random.Random(1))
    model = subject.start_round()
    owners = ((key, host) for key, host in model.owners.items() if host in model.macs)
    (address, _, port), host = next((key, host) for key, host in owners if key[1] == abi.PortClass.UDP)
    frame = bytes(udp(7, port, src=REMOTE, dst=str(IPv4Address(address))))
    for _ in range(2):
        verdict, left, receiver = subject.run("router_wan", frame)
    assert receiver == host
    model.check("router_wan", frame, verdict, left, receiver)
    with pytest.raises(Wrong, match="sent to"):
        model.check("router_wan", frame, verdict, left, HOST_B if host == HOST_A else HOST_A)
