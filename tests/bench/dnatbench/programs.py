"""What each program costs, apart from the kernel's way to it: nanoseconds by BPF_PROG_TEST_RUN.

Uses the packets and the tables of the packet tests (tests/bpf).
"""

from __future__ import annotations

import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bpf_bench import EXTERNAL, NATIVE, REMOTE, Bench, HostBench, RouterBench, udp
from scapy.packet import Packet
from xdp_bench import RouterXdpBench, build_wires

from dnat.dataplane import abi, loader
from dnat.dataplane.bpf import program_test_run
from dnat.system import netns
from dnat.types import PortRange, Protocol
from dnatbench.kernel import Module
from dnatbench.measure import Summary, interleave, net, one_cpu

EMPTY = {"tc": "empty program (TC)", "xdp": "empty program (XDP)"}
_HEADER = 64
_POOL = PortRange(30000, 34095)
_LOCAL_PORT = 4000
_RIVALS = (4096, 4096 + abi.RECENT_MAX)
"""Local ports that displace each other's entry in ``recent_out``; the first is where the source port begins."""
_IN = {"src": REMOTE, "dst": EXTERNAL}


@dataclass(frozen=True)
class Effort:
    rounds: int
    runs: int
    """Of a program in each sample."""
    bindings: int
    """Made in each sample of the first packet of a binding."""


FULL = Effort(rounds=15, runs=200_000, bindings=1000)
SHORT = Effort(rounds=2, runs=20_000, bindings=500)


class _Restored:
    """Programs run on packets that are put back each time."""

    def __init__(self) -> None:
        self._module = Module("restore.c")
        self._entries = {hook: self._module.program(f"{hook}_restore") for hook in ("tc", "xdp")}
        self._templates = self._module.map("templates")
        self._targets = {hook: self._module.map(f"{hook}_targets") for hook in ("tc", "xdp")}

    def sample(self, hook: str, program: int, packet: bytes, runs: int, ports: int = 0, step: int = 1) -> float:
        """CPU nanoseconds of one run, the restoring included; the source port takes turns over ``ports``."""
        self._templates.put(struct.pack("=I", 0), packet[:_HEADER] + struct.pack("=4I", ports, step, 0, 0))
        self._targets[hook].put(struct.pack("=I", 0), struct.pack("=i", program))
        started = time.thread_time_ns()
        program_test_run(self._entries[hook], packet, repeat=runs)
        return (time.thread_time_ns() - started) / runs


def run(effort: Effort, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row for each program and path, net of an empty program."""
    say("each program by itself")
    with ExitStack() as stack:
        stack.enter_context(one_cpu())
        stack.enter_context(_wires())
        pins = stack.enter_context(_pins())
        for role in ("host", "router"):
            loader.ensure_loaded(role, pins / role)
        host = stack.enter_context(HostBench(pins / "host"))
        router = stack.enter_context(RouterXdpBench(pins / "router"))
        samples = interleave(_variants(effort, _Restored(), host, router), effort.rounds)
        router.close()
    rows = []
    for label, values in samples.items():
        base = samples[EMPTY["xdp" if "XDP" in label else "tc"]]
        rows.append(
            {"program": label, "ns": asdict(Summary.of(values if label in EMPTY.values() else net(values, base)))}
        )
    return rows


def _variants(
    effort: Effort, restored: _Restored, host: HostBench, router: RouterXdpBench
) -> dict[str, Callable[[], float]]:
    host.plane.set_ports([(NATIVE, Protocol.ANY)], [(_POOL, Protocol.ANY)])
    host.run("host_out", _long(udp(_LOCAL_PORT, 7)))
    (unique,) = (port for (_, local), port in host.bound().items() if local == _LOCAL_PORT)
    peers = Module("programs.c", TARGET=0)

    def hit(hook: str, program: int, packet: Packet) -> Callable[[], float]:
        octets = bytes(_long(packet))
        return lambda: restored.sample(hook, program, octets, effort.runs)

    def ours(bench: Bench, program: str, packet: Packet) -> Callable[[], float]:
        return hit("tc", bench._programs[program], packet)

    def at_xdp(program: str, packet: Packet) -> Callable[[], float]:
        measure = hit("xdp", router._at_xdp[program], packet)

        def sample() -> float:
            # At TC: has the kernel find the host, which is good for the time of a sample.
            RouterBench.run(router, program.removesuffix("_xdp"), packet)
            return measure()

        return sample

    def looked_up() -> float:
        for number, local_port in enumerate(_RIVALS, 1):
            host.bind(Protocol.UDP, local_port, unique ^ number)
        packet = bytes(_long(udp(_LOCAL_PORT, 7)))
        program = host._programs["host_out"]
        return restored.sample("tc", program, packet, effort.runs, ports=len(_RIVALS), step=_RIVALS[1] - _RIVALS[0])

    def first() -> float:
        for name in ("bindings_out", "bindings_in"):
            table = host.plane._maps[name]
            for key in list(table.keys()):
                table.delete(key)
        # As the daemon does every few seconds; else the programs take all ports for used, and look for an expired one.
        host.plane.sweep(time.monotonic())
        program, packet = host._programs["host_out"], bytes(_long(udp(_LOCAL_PORT, 7)))
        spent = restored.sample("tc", program, packet, effort.bindings, ports=effort.bindings)
        made = len(host.bound())
        if made != effort.bindings:
            raise RuntimeError(f"{made} bindings were made, not {effort.bindings}")
        for key in list(host.plane._maps["bindings_in"].keys()):
            host.plane._maps["bindings_in"].delete(key)
        for key in list(host.plane._maps["bindings_out"].keys()):
            host.plane._maps["bindings_out"].delete(key)
        host.bind(Protocol.UDP, _LOCAL_PORT, unique)
        return spent

    outward, inward = udp(NATIVE.first, 7), udp(7, NATIVE.first, **_IN)
    return {
        EMPTY["tc"]: hit("tc", peers.program("tc_empty"), outward),
        "parse only (TC)": hit("tc", peers.program("tc_parse"), outward),
        "host out, native": ours(host, "host_out", outward),
        "host out, translated": ours(host, "host_out", udp(_LOCAL_PORT, 7)),
        "host out, translated, from the table": looked_up,
        "host out, first packet of a binding": first,
        "host in, native": ours(host, "host_in", inward),
        "host in, translated": ours(host, "host_in", udp(7, unique, **_IN)),
        "router in": ours(router, "router_wan", udp(7, 20000, **_IN)),
        "router out": ours(router, "router_lan", udp(20000, 7)),
        "router hairpin": ours(router, "router_lan", udp(20000, 20016, dst=EXTERNAL)),
        EMPTY["xdp"]: hit("xdp", peers.program("xdp_empty"), outward),
        "parse only (XDP)": hit("xdp", peers.program("xdp_parse"), outward),
        "router in (XDP)": at_xdp("router_wan_xdp", udp(7, 20000, **_IN)),
        "router out (XDP)": at_xdp("router_lan_xdp", udp(20000, 7)),
        "router hairpin (XDP)": at_xdp("router_lan_xdp", udp(20000, 20016, dst=EXTERNAL)),
    }


def _long(packet: Packet) -> Packet:
    """Long enough to be put back."""
    return packet / (b"." * max(0, _HEADER - len(bytes(packet))))


@contextmanager
def _pins() -> Iterator[Path]:
    path = loader.BPFFS / f"bench-{os.getpid()}-programs"
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _wires() -> Iterator[None]:
    name = build_wires()
    try:
        with netns.enter(name):
            yield
    finally:
        netns.delete(name)
