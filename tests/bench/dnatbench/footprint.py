"""Memory of router and daemons, and the time that `dnatctl up` takes until a packet is answered."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dnat.dataplane import loader, objects
from dnat.dataplane.bpf import object_get
from dnat.lab import builder, control
from dnat.lab.topology import EXT, Topology
from dnat.system import netns
from dnatbench.forwarding import room_for_flows
from dnatbench.kernel import Generator
from dnatbench.measure import Summary
from dnatbench.peers import Dnat, Nftables

_FLOWS = 200_000
_ECHO = 7
_SECONDS = 20.0


def memory(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Octets of kernel memory that a router takes: for a flow, a leased port, a host."""
    say("memory")
    with ExitStack() as stack:
        stack.enter_context(room_for_flows())
        dnat, nftables = stack.enter_context(Dnat("tc")), stack.enter_context(Nftables())
        assert isinstance(dnat, Dnat) and isinstance(nftables, Nftables)
        generator = Generator()
        before = _map_octets(dnat)
        for peer in (dnat, nftables):
            generator.prepare(peer.plan(inbound=True, flows=_FLOWS, length=60, private=peer.private))
            with netns.enter(peer.ends):
                generator.send(_FLOWS)
        rows = [
            ("dnat: a flow", (sum(_map_octets(dnat).values()) - sum(before.values())) / _FLOWS),
            ("nftables NAT: a flow", nftables.entries() / _FLOWS * _conntrack_octets()),
            ("dnat: a leased port", float(objects.INNER_OWNERS.value_size)),
            ("dnat: a host", float(objects.MAPS["router"]["hosts"].value_size)),
            ("dnat: everything else", float(sum(before.values()))),
        ]
        nftables.forget_flows()
    return [{"what": what, "octets": octets} for what, octets in rows]


def _map_octets(dnat: Dnat) -> dict[str, int]:
    """What the kernel charges for each map."""
    charged = {}
    for path in loader.maps_directory(dnat.pins).iterdir():
        fd = object_get(path)
        try:
            lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        finally:
            os.close(fd)
        charged[path.name] = int(next(line.split()[1] for line in lines if line.startswith("memlock:")))
    return charged


def _conntrack_octets() -> int:
    """Of one entry, with the extensions that NAT adds to it: 128 octets, which the kernel does not list by name."""
    for line in Path("/proc/slabinfo").read_text().splitlines():
        if line.startswith("nf_conntrack "):
            return int(line.split()[3]) + 128
    return 256 + 128


def daemons(rounds: int, say: Callable[[str], None]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Seconds until a phone is answered after `dnatctl up`, cold and with programs compiled; and resident sizes."""
    say("time from dnatctl up to the first answer")
    topology = Topology(prefix=f"bench{os.getpid()}", phones=1)
    try:
        control.up(topology, lambda _: None)
        cold = [_up(topology, _stopped) for _ in range(rounds)]
        warm = [_up(topology, _killed) for _ in range(rounds)]
        sizes = [
            {"what": f"daemon of a {what}", "megabytes": _resident(topology, node)}
            for what, node in (("host", "phone1"), ("router with server", "router"))
        ]
    finally:
        builder.destroy(topology.prefix)
    times = [
        {"what": "cold: programs have to be compiled", "seconds": asdict(Summary.of(cold))},
        {"what": "warm: programs are there, the daemon is not", "seconds": asdict(Summary.of(warm))},
    ]
    return times, sizes


def _up(topology: Topology, prepare: Callable[[Topology], None]) -> float:
    prepare(topology)
    started = time.perf_counter()
    control.run(topology, "phone1", [control.DNATCTL, "up"], check=True, capture_output=True, timeout=60)
    with netns.enter(topology.namespace("phone1")):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(0.05)
        while time.perf_counter() - started < _SECONDS:
            sock.sendto(b"?", (str(EXT), _ECHO))
            try:
                sock.recv(10)
                return time.perf_counter() - started
            except TimeoutError:
                continue
    raise RuntimeError("no answer after dnatctl up")


def _stopped(topology: Topology) -> None:
    control.run(topology, "phone1", [control.DNATCTL, "down"], check=True, capture_output=True, timeout=60)


def _killed(topology: Topology) -> None:
    pid = _pid(topology, "phone1")
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.005)


def _pid(topology: Topology, node: str) -> int:
    return int(Path(f"/run/dnat/{topology.namespace(node)}/daemon.pid").read_text())


def _resident(topology: Topology, node: str) -> float:
    lines = Path(f"/proc/{_pid(topology, node)}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) / 1024
