"""A running lab as tests use it: commands, sockets and counters of a node."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dnat.client import Client
from dnat.dataplane.host import HostPlane
from dnat.instance import Instance
from dnat.lab import control
from dnat.lab.topology import EXT, Topology
from dnat.system import netns
from dnat.types import PortRange

SECONDS = 3.0
"""How long a test waits for a packet that should come."""
SILENCE = 0.4
"""How long it waits for one that should not."""


class Node:
    """One machine of a lab."""

    def __init__(self, topology: Topology, name: str) -> None:
        self.topology = topology
        self.name = name
        self.namespace = topology.namespace(name)
        self.address = str(topology.node(name).address)

    def run(self, *argv: str, code: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program here; fails the test unless it exits with ``code`` (None: anything)."""
        done = control.run(self.topology, self.name, argv, **{"timeout": 40, **options})
        if code is not None and done.returncode != code:
            pytest.fail(f"{self.name}: {' '.join(argv)} exited {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def dnatctl(self, *argv: str, code: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run(control.DNATCTL, *argv, code=code, **options)

    def show(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.dnatctl("show", "-o", "json").stdout)
        return document

    def call(self, method: str, **parameters: Any) -> Any:
        """Ask the daemon directly: quicker than a process for each question."""
        with Client(Instance(self.namespace).socket) as client:
            return client.call(method, **parameters)

    def ports(self, purpose: str) -> PortRange:
        """The node's one lease for a purpose."""
        (lease,) = (lease for lease in self.show()["leases"] if lease["purpose"] == purpose)
        return PortRange(lease["first"], lease["last"])

    def counter(self, name: str) -> int:
        return int(self.show()["counters"][name])

    def request(self, *argv: str) -> dict[str, Any]:
        """Lease explicit ports; returns the lease."""
        lease: dict[str, Any] = json.loads(self.dnatctl("request", "-o", "json", *argv).stdout)["lease"]
        return lease

    @contextmanager
    def configured(self, table: str, directory: Path) -> Iterator[Node]:
        """Up with this ``[host]`` table; as before afterwards."""
        path = directory / "dnat.toml"
        path.write_text(f"[host]\n{table}\n")
        self.dnatctl("down")
        try:
            self.dnatctl("up", "--config", str(path))
            yield self
        finally:
            self.dnatctl("down", code=None)
            self.dnatctl("up")

    def plane(self) -> HostPlane:
        """The maps of this host."""
        return HostPlane.open(Instance(self.namespace).pins("host"))

    def pid(self) -> int:
        return int(Path(f"/run/dnat/{self.namespace}/daemon.pid").read_text())

    @contextmanager
    def socket(
        self, kind: socket.SocketKind, port: int = 0, address: str = "0.0.0.0", listen: bool = False
    ) -> Iterator[socket.socket]:
        """A socket that belongs to this node."""
        with netns.enter(self.namespace):
            opened = socket.socket(socket.AF_INET, kind)
        with opened:
            opened.settimeout(SECONDS)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((address, port))
            if listen:
                opened.listen(64)
            yield opened

    @contextmanager
    def raw_socket(self) -> Iterator[socket.socket]:
        """Sends whole IP packets."""
        with netns.enter(self.namespace):
            opened = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with opened:
            yield opened

    @contextmanager
    def packet_socket(self, protocol: int) -> Iterator[socket.socket]:
        """What arrives at the node's eth0, whole frames of one Ethernet protocol."""
        with netns.enter(self.namespace):
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
            opened.bind(("eth0", protocol))
        with opened:
            opened.settimeout(SECONDS)
            yield opened


class Lab:
    """A lab that is up."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.external = str(topology.external)
        self.ext = str(EXT)

    def __getitem__(self, name: str) -> Node:
        return Node(self.topology, name)


def eventually(check: Callable[[], Any], what: str, seconds: float = 5.0) -> Any:
    """Wait until ``check`` gives something true; fails the test otherwise."""
    deadline = time.monotonic() + seconds
    while not (result := check()):
        if time.monotonic() > deadline:
            pytest.fail(f"it did not come to pass within {seconds} s: {what}")
        time.sleep(0.05)
    return result
