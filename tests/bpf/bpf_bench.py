"""Running packets through loaded programs, and words for writing them down.

A case says what a packet is, the packet, the verdict, what is counted, and the packet that leaves (None: as
it came). Scapy computes every checksum of what is expected, and whole packets are compared.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Self, TypeVar

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from dnat.dataplane import abi, objects
from dnat.dataplane.bpf import object_get, program_by_id, program_test_run
from dnat.dataplane.host import HostPlane, Policy
from dnat.dataplane.loader import program_pin
from dnat.dataplane.router import RouterPlane
from dnat.types import Owner, PortRange, Protocol

T = TypeVar("T")

PASS, DROP, REDIRECT = -1, 2, 7

EXTERNAL = "198.51.100.1"
OTHER_EXTERNAL = "198.51.100.2"
OWN_EXTERNAL = "203.0.113.1"
REMOTE = "203.0.113.2"
ROUTER = "10.66.0.1"
HOST_A = "10.66.0.11"
HOST_B = "10.66.0.12"
MAC_A = "02:00:00:00:00:0a"
MAC_B = "02:00:00:00:00:0b"
MAC_ROUTER = "00:00:00:00:00:00"
"""What a test run takes for the address of the interface."""
MAC_REMOTE = "02:00:00:00:00:0e"
"""Of the gateway outside."""
MACS = {HOST_A: MAC_A, HOST_B: MAC_B, REMOTE: MAC_REMOTE}
LAN = IPv4Network("10.66.0.0/24")

NATIVE = PortRange(20000, 20015)
POOL = PortRange(30000, 30003)


@dataclass(frozen=True)
class Case:
    """One packet and what has to become of it."""

    says: str
    sent: Packet
    verdict: int
    counted: str | None = None
    """Label of the counter that rises by one; no other may rise, save those in ``also``."""
    leaves: Packet | None = None
    also: tuple[str, ...] = ()
    bindings: Mapping[tuple[Protocol, int], int] = field(default_factory=dict)
    """Local port to unique port, there before."""
    creates: Mapping[tuple[Protocol, int], int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.says


@dataclass(frozen=True)
class Outcome:
    verdict: int
    packet: bytes
    counted: Mapping[str, int]


class Bench:
    """Programs of one role and their maps."""

    programs: tuple[str, ...]

    def __init__(self, pins: Path, plane: HostPlane | RouterPlane) -> None:
        self.plane = plane
        self._programs = {name: object_get(program_pin(pins, name)) for name in objects.PROGRAMS[plane.role]}
        self.reset()

    def reset(self) -> None:
        fragments = self.plane._maps["fragments"]
        for key in list(fragments.keys()):
            fragments.delete(key)

    def run(self, program: str, packet: Packet | bytes, context: bytes = b"") -> Outcome:
        """``context`` is a ``struct __sk_buff``, as for ``program_test_run``."""
        before = self.plane.counters()
        verdict, left, _ = program_test_run(self._programs[program], bytes(packet), context)
        after = self.plane.counters()
        counted = {label: after[label] - before[label] for label in after if after[label] != before[label]}
        return Outcome(verdict, left, counted)

    def check(self, program: str, case: Case) -> None:
        """Run one case and compare everything."""
        outcome = self.run(program, case.sent)
        expected = bytes(case.sent if case.leaves is None else case.leaves)
        assert outcome.verdict == case.verdict, outcome
        assert outcome.packet == expected, f"{Ether(outcome.packet)!r}\nis not\n{Ether(expected)!r}"
        assert outcome.counted == dict.fromkeys(((case.counted,) if case.counted else ()) + case.also, 1)

    def __enter__(self) -> Self:
        """Stay on one CPU: what a program keeps for each CPU is then there for the next packet."""
        self._cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {running_cpu()})
        return self

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._cpus)
        self.plane.close()


def running_cpu() -> int:
    """The CPU this thread is on, proc_pid_stat(5) field 39."""
    return int(Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()[36])


class HostBench(Bench):
    """A host that owns NATIVE, translates to POOL, and holds the external address EXTERNAL."""

    plane: HostPlane

    def __init__(self, pins: Path) -> None:
        super().__init__(pins, HostPlane.open(pins))

    def reset(self) -> None:
        super().reset()
        self.plane.set_ports([], [])
        for name in ("bindings_in", "peers"):
            leftover = self.plane._maps[name]
            for key in list(leftover.keys()):
                leftover.delete(key)
        self.set_policy(Policy())
        self.plane.set_exhausted(False)
        for port_class in range(abi.TRANSLATED_CLASSES):
            self.plane._maps["usage"].put(struct.pack("=I", port_class), bytes(abi.PoolUsage()))
        self.plane.drain_events()
        self.plane.set_ports([(NATIVE, Protocol.ANY)], [(POOL, Protocol.ANY)])

    def check(self, program: str, case: Case) -> None:
        for (protocol, local_port), port in case.bindings.items():
            self.bind(protocol, local_port, port)
        super().check(program, case)
        assert self.bound() == {**case.bindings, **case.creates}

    def set_policy(self, policy: Policy) -> None:
        self.plane.configure(IPv4Address(EXTERNAL), 1, IPv4Address(ROUTER), policy)

    def bound(self) -> dict[tuple[Protocol, int], int]:
        """Bindings, as ``Case`` writes them."""
        return {(found.protocol, found.local_port): found.port for found in self.plane.bindings(time.monotonic())}

    def bind(
        self,
        protocol: Protocol,
        local_port: int,
        port: int,
        *,
        idle: float = 0,
        limit: int = 300,
        state: int = 0,
    ) -> None:
        """Make a binding that sent its last packet ``idle`` seconds ago."""
        (port_class,) = abi.CLASSES_OF[protocol]
        then = time.monotonic_ns() - int(idle * 1e9)
        binding = abi.Binding(created_ns=then, seen_ns=then, idle_seconds=limit, port=port, state=state)
        local = abi.PortKey(local_port, port_class, 0)
        self.plane._maps["bindings_out"].put(bytes(local), bytes(binding))
        inward = abi.Inward(created_ns=then, port=local_port)
        self.plane._maps["bindings_in"].put(bytes(abi.PortKey(port, port_class, 0)), bytes(inward))
        self.plane._forget_recent(local, port)


class RouterBench(Bench):
    """A router with EXTERNAL routed to it and OWN_EXTERNAL on its WAN; A owns 20000-20015 and B 20016-20031
    of both.
    """

    plane: RouterPlane
    network = LAN
    lan_ifindex = wan_ifindex = 1
    lan_mac, wan_mac = bytes.fromhex("020000000001"), bytes(6)

    def __init__(self, pins: Path) -> None:
        super().__init__(pins, RouterPlane.open(pins))
        self.receivers: list[str] = []
        """To whom packets were sent on whose link addresses the programs wrote themselves."""

    def run(self, program: str, packet: Packet | bytes, context: bytes = b"") -> Outcome:
        """A packet that the programs addressed themselves gets its former link addresses back, after a look at the new
        ones: those of others the kernel would write.
        """
        outcome = super().run(program, packet, context)
        if outcome.verdict != REDIRECT or outcome.packet[:12] == bytes(packet)[:12]:
            return outcome
        return Outcome(REDIRECT, self.readdressed(bytes(packet), outcome.packet), outcome.counted)

    def readdressed(self, packet: bytes, left: bytes) -> bytes:
        """What left, with the link addresses that it came with."""
        (receiver,) = (address for address, known in MACS.items() if mac(known) == left[:6])
        assert left[6:12] == (self.wan_mac if receiver == REMOTE else self.lan_mac), "the source is the interface"
        self.receivers.append(receiver)
        return packet[:12] + left[12:]

    def with_one_left(self, budget: str, key: int, limit: int, act: Callable[[], T]) -> T:
        """What comes of ``act`` when one event is left of ``limit`` a second, all of it within that second."""
        for _ in range(10):
            second = time.monotonic_ns() // 1_000_000_000
            left = abi.OffenceBudget(second=second, used=limit - 1)
            self.plane._maps[budget].put(struct.pack("=I", key), bytes(left))
            result = act()
            if time.monotonic_ns() // 1_000_000_000 == second:
                return result
        raise AssertionError("ten times a second ended in between")

    @contextmanager
    def without_stage(self, stage: abi.Stage) -> Iterator[None]:
        """As long as it lasts, the program of a stage is missing."""
        stages, key = self.plane._maps["stages"], struct.pack("=I", stage)
        (number,) = struct.unpack("=I", stages.get(key) or b"")
        program = program_by_id(number)
        stages.delete(key)
        try:
            yield
        finally:
            stages.put(key, struct.pack("=i", program))
            os.close(program)

    def forget_ways(self) -> None:
        """Have the kernel find hosts and destinations anew."""
        self.plane._forget_ways()
        hosts = self.plane._maps["hosts"]
        for key, value in hosts.items():
            host = abi.Host.from_buffer_copy(value)
            if host.asked:
                host.asked = 0
                hosts.put(key, bytes(host))

    def reset(self) -> None:
        super().reset()
        self.plane.set_network(
            self.lan_ifindex,
            self.wan_ifindex,
            {IPv4Address(EXTERNAL): False, IPv4Address(OWN_EXTERNAL): True},
            lan=self.network,
            local=[IPv4Address(ROUTER), IPv4Address(OWN_EXTERNAL)],
            lan_address=IPv4Address(ROUTER),
            wan_address=IPv4Address(OWN_EXTERNAL),
            lan_mtu=1500,
            wan_mtu=1500,
            lan_mac=self.lan_mac,
        )
        for slot in list(self.plane._maps["waiting"].keys()):
            self.plane._maps["waiting"].delete(slot)
        for kind in abi.ErrorKind:
            self.plane._maps["error_budget"].put(struct.pack("=I", kind), bytes(abi.OffenceBudget()))
        self.plane.set_owners(
            Owner(IPv4Address(external), ports, Protocol.ANY, IPv4Address(host))
            for external in (EXTERNAL, OWN_EXTERNAL)
            for host, ports in ((HOST_A, PortRange(20000, 20015)), (HOST_B, PortRange(20016, 20031)))
        )
        self.plane.set_macs({IPv4Address(HOST_A): mac(MAC_A), IPv4Address(HOST_B): mac(MAC_B)})
        self.forget_ways()
        self.plane.drain_offences()
        self.plane._maps["offence_budget"].put(struct.pack("=I", 0), bytes(abi.OffenceBudget()))


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ether(packet: Packet, source: str = MAC_A, destination: str = MAC_ROUTER) -> Packet:
    return Ether(src=source, dst=destination) / packet


def udp(sport: int, dport: int, *, src: str = EXTERNAL, dst: str = REMOTE, ttl: int = 64, **fields: int) -> Packet:
    return ether(
        IP(src=src, dst=dst, ttl=ttl, flags="DF") / UDP(sport=sport, dport=dport, **fields) / Raw(b"spoken words")
    )


def tcp(sport: int, dport: int, *, src: str = EXTERNAL, dst: str = REMOTE, ttl: int = 64, flags: str = "A") -> Packet:
    return ether(
        IP(src=src, dst=dst, ttl=ttl, flags="DF")
        / TCP(sport=sport, dport=dport, flags=flags, seq=7)
        / Raw(b"written words")
    )


def echo(identifier: int, *, src: str = EXTERNAL, dst: str = REMOTE, ttl: int = 64, reply: bool = False) -> Packet:
    kind = "echo-reply" if reply else "echo-request"
    return ether(IP(src=src, dst=dst, ttl=ttl, flags="DF") / ICMP(type=kind, id=identifier, seq=1) / Raw(b"hello"))


def router_error(packet: Packet, src: str, *, mtu: int | None = None, to: str | None = None) -> Packet:
    """What the router answers to a packet: time exceeded or, with ``mtu``, fragmentation needed."""
    outer = IP(src=src, dst=to or packet[IP].src, tos=0xC0, id=0, flags="DF", ttl=64)
    icmp = ICMP(type=11, code=0) if mtu is None else ICMP(type=3, code=4, nexthopmtu=mtu)
    return Ether(src=packet.src, dst=packet.dst) / outer / icmp / Raw(bytes(packet[IP])[: 576 - 28])


def error(quoted: Packet, *, src: str, dst: str, ttl: int = 64, octets: int | None = None, kind: int = 3) -> Packet:
    """An ICMP error that quotes a packet (without its Ethernet header), or its first octets."""
    header = IP(src=src, dst=dst, ttl=ttl, flags="DF")
    return ether(header / ICMP(type=kind, code=1) / Raw(bytes(quoted[IP])[:octets]))


def refusal(refused: Packet) -> Packet:
    """What a host tells a program whose packet it drops for good: frame and packet are from itself to itself."""
    packet = IP(bytes(refused[IP]))
    octets = packet.ihl * 4 + (20 if packet.proto == 6 else 8)
    header = IP(src=packet.src, dst=packet.src, id=0, flags="DF")
    quoted = Raw(bytes(packet)[:octets])
    return ether(header / ICMP(type=3, code=13) / quoted, refused[Ether].src, refused[Ether].src)
