"""TCP of a host: bulk and request rate from its own ports, from translated ports, past programs that do nothing, and
without a data plane.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from ipaddress import IPv4Address
from typing import Any

from dnat.dataplane import attach, loader
from dnat.dataplane.bpf import object_pin
from dnat.dataplane.host import HostPlane
from dnat.system import netns
from dnat.types import PortRange, Protocol
from dnatbench.kernel import Module
from dnatbench.measure import Samples, Summary, interleave, one_cpu, ratio
from dnatbench.topology import run as run_in

NONE, EMPTY, NATIVE, TRANSLATED = "no data plane", "empty programs", "native", "translated"
_EXTERNAL, _REMOTE = "198.51.100.1", "203.0.113.2"
_LAN, _GATEWAY = "10.66.0.11", "10.66.0.1"
_LOCAL_PORTS = {NONE: 20000, EMPTY: 20000, NATIVE: 20000, TRANSLATED: 4000}
_WORDS = b"x" * 128
_TURNS = 10
"""In each round, of requests."""


class _Host:
    """A host on one cable with the outside; the far end is its gateway and the remote peer."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._stem = f"bench{os.getpid()}-{kind.replace(' ', '')[:6]}"
        self.near, self.far = f"{self._stem}-host", f"{self._stem}-ext"
        self._pins = loader.BPFFS / self._stem

    def __enter__(self) -> _Host:
        for name in (self.near, self.far):
            netns.create(name)
            run_in(name, "ip link set lo up")
        run_in(
            self.near,
            f"ip link add eth0 type veth peer name eth0 netns {self.far}",
            f"ip addr add {_LAN}/24 dev eth0",
            f"ip addr add {_EXTERNAL}/32 dev lo",
            "ip link set eth0 up",
        )
        run_in(
            self.far, f"ip addr add {_GATEWAY}/24 dev eth0", f"ip addr add {_REMOTE}/32 dev lo", "ip link set eth0 up"
        )
        run_in(self.far, f"ip route add {_EXTERNAL}/32 via {_LAN}")
        run_in(self.near, f"ip route add default via {_GATEWAY} src {_EXTERNAL}")
        if self.kind == EMPTY:
            self._load_empty()
        elif self.kind != NONE:
            self._load()
        return self

    def _load_empty(self) -> None:
        self._module = Module("programs.c", TARGET=0)
        # As deep below the host's pins as its own programs would be.
        pin = self._pins / "bench" / "programs" / "tc_empty"
        pin.parent.mkdir(parents=True)
        object_pin(self._module.program("tc_empty"), pin)
        with netns.enter(self.near):
            attach.attach("eth0", "egress", pin, "tc_empty")
            attach.attach("eth0", "ingress", pin, "tc_empty")

    def _load(self) -> None:
        loader.ensure_loaded("host", self._pins)
        with netns.enter(self.near):
            plane = HostPlane.open(self._pins)
            plane.configure(IPv4Address(_EXTERNAL), socket.if_nametoindex("eth0"), IPv4Address(_GATEWAY))
            plane.set_ports([(PortRange(20000, 20015), Protocol.ANY)], [(PortRange(30000, 30063), Protocol.ANY)])
            plane.close()
            hooks: tuple[tuple[str, str, attach.Direction], ...] = (
                ("host_out", "eth0", "egress"),
                ("host_in", "eth0", "ingress"),
                ("host_loop", "lo", "egress"),
            )
            for program, interface, direction in hooks:
                attach.attach(interface, direction, loader.program_pin(self._pins, program), program)

    def __exit__(self, *_: object) -> None:
        for name in (self.near, self.far):
            netns.delete(name)
        shutil.rmtree(self._pins, ignore_errors=True)

    @contextmanager
    def connection(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """The host's end and the far end; both are reset at the end, so that ports are free again."""
        with netns.enter(self.far):
            listener = socket.create_server((_REMOTE, 8000))
        with netns.enter(self.near):
            client = socket.socket()
        with listener, client:
            for one in (listener, client):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.settimeout(20)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.bind((_EXTERNAL, _LOCAL_PORTS[self.kind]))
            client.connect((_REMOTE, 8000))
            server, peer = listener.accept()
            server.settimeout(20)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if (peer[1] == _LOCAL_PORTS[self.kind]) == (self.kind == TRANSLATED):
                raise RuntimeError(f"{self.kind}: the far end sees port {peer[1]}")
            with server:
                yield client, server

    def bulk(self, octets: int) -> float:
        """Gbit/s from the host to the outside."""
        with self.connection() as (client, server):
            thread = threading.Thread(target=client.sendall, args=(bytes(octets),))
            buffer, received = bytearray(1 << 20), 0
            started = time.perf_counter()
            thread.start()
            while received < octets:
                received += server.recv_into(buffer)
            spent = time.perf_counter() - started
            thread.join()
        return octets * 8 / spent / 1e9


def _requests(client: socket.socket, server: socket.socket, count: int) -> float:
    """Requests and answers of 128 octets, one after the other, in thousands a second."""
    started = time.perf_counter()
    for _ in range(count):
        client.send(_WORDS)
        server.recv(256)
        server.send(_WORDS)
        client.recv(256)
    return count / (time.perf_counter() - started) / 1e3


def _bulk_samples(hosts: list[_Host], rounds: int, megabytes: int) -> Samples:
    return interleave({host.kind: (lambda host=host: host.bulk(megabytes << 20)) for host in hosts}, rounds)


def _request_samples(hosts: list[_Host], rounds: int, requests: int) -> Samples:
    """In turns of a few milliseconds, on one CPU: what differs is little beside what the machine does meanwhile."""
    with ExitStack() as stack:
        stack.enter_context(one_cpu())
        ends = {host.kind: stack.enter_context(host.connection()) for host in hosts}
        count = requests // _TURNS
        return interleave(
            {kind: (lambda pair=pair: _requests(*pair, count)) for kind, pair in ends.items()}, rounds * _TURNS
        )


def run(rounds: int, megabytes: int, requests: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows by measure and kind, each beside the host without a data plane and the one whose programs do nothing."""
    rows = []
    with ExitStack() as stack:
        hosts = [stack.enter_context(_Host(kind)) for kind in (NONE, EMPTY, NATIVE, TRANSLATED)]
        measures: dict[str, Callable[[], Samples]] = {
            "bulk, Gbit/s": lambda: _bulk_samples(hosts, rounds, megabytes),
            "requests, 1000/s": lambda: _request_samples(hosts, rounds, requests),
        }
        for measure, take in measures.items():
            say(f"host, TCP {measure}")
            samples = take()
            rows += [
                {
                    "measure": measure,
                    "host": kind,
                    "value": asdict(Summary.of(values)),
                    "of_none": asdict(ratio(values, samples[NONE])),
                    "of_empty": asdict(ratio(values, samples[EMPTY])),
                }
                for kind, values in samples.items()
            ]
    return rows
