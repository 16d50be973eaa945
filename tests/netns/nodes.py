"""A running lab as tests use it: commands, sockets and counters of a node."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from inside import snapshot

from dnat.client import Client
from dnat.dataplane.host import HostPlane
from dnat.instance import Instance
from dnat.lab import builder, control
from dnat.lab.topology import EXT, Topology
from dnat.system import netns
from dnat.system.paths import NETNS_CONFIG_DIRECTORY
from dnat.types import PortRange

SECONDS = 15.0
"""How long a test waits for a packet that should come."""
SILENCE = 0.4
"""How long it waits for one that should not."""


OTHER_EXTERNAL = "198.51.100.2"
"""An address that tests have their labs share as well."""


class Machine:
    """A network namespace that runs dnat."""

    def __init__(self, namespace: str, address: str) -> None:
        self.namespace = namespace
        self.address = address
        self.configuration: Path | None = None
        """The file that it is `configured` with."""

    @property
    def dnat_toml(self) -> Path:
        """The file that its dnat is configured by, unless another one is named."""
        return NETNS_CONFIG_DIRECTORY / self.namespace / "dnat" / "dnat.toml"

    def run(self, *argv: str, code: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program here; fails the test unless it exits with ``code`` (None: anything)."""
        path = f"{Path(control.DNATCTL).parent}:{os.environ['PATH']}"
        options = {"capture_output": True, "text": True, "timeout": 40, "env": os.environ | {"PATH": path}, **options}
        done: subprocess.CompletedProcess[str] = netns.run(argv, self.namespace, **options)
        if code is not None and done.returncode != code:
            pytest.fail(f"{self.namespace}: {' '.join(argv)} exited {done.returncode}: {done.stdout}{done.stderr}")
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
        """Its one lease for a purpose; of several ephemeral ones that which the kernel picks from."""
        leases = [
            PortRange(each["first"], each["last"]) for each in self.show()["leases"] if each["purpose"] == purpose
        ]
        if purpose == "ephemeral":
            first = int(self.run("sysctl", "-n", "net.ipv4.ip_local_port_range").stdout.split()[0])
            leases = [each for each in leases if each.first == first]
        (lease,) = leases
        return lease

    def blocks(self, purpose: str) -> list[int]:
        """Sizes of its leases for a purpose."""
        leases = self.call("show")["leases"]
        return [each["last"] - each["first"] + 1 for each in leases if each["purpose"] == purpose]

    def counter(self, name: str) -> int:
        return int(self.show()["counters"][name])

    def request(self, *argv: str) -> dict[str, Any]:
        """Lease explicit ports; returns the lease."""
        lease: dict[str, Any] = json.loads(self.dnatctl("request", "-o", "json", *argv).stdout)["lease"]
        return lease

    def leases(self) -> list[dict[str, Any]]:
        """The leases, without what changes by itself."""
        return sorted(
            ({key: value for key, value in lease.items() if key != "expires_in"} for lease in self.show()["leases"]),
            key=lambda lease: int(lease["first"]),
        )

    @property
    def runtime(self) -> Path:
        return Path("/run/dnat") / self.namespace

    @contextmanager
    def configured(self, table: str, directory: Path) -> Iterator[Machine]:
        """Up with this ``[host]`` table; as before afterwards."""
        self.configuration = path = directory / "dnat.toml"
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
        return int((self.runtime / "daemon.pid").read_text())

    def log(self) -> str:
        """What the daemon has written."""
        return (self.runtime / "daemon.log").read_text(errors="replace")

    def kill(self) -> None:
        """End the daemon as a crash does."""
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{pid}/cwd").exists(), f"process {pid} is gone")

    def replace(self, **options: Any) -> None:
        """End the daemon and start that of another version (by ``env``) or of this one, as a package manager does."""
        pid = self.pid()
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "the old daemon ends", 20)
        self.run(sys.executable, "-c", "from dnat.cli import main; main()", "up", **options)

    @contextmanager
    def socket(
        self, kind: socket.SocketKind, port: int = 0, address: str = "0.0.0.0", listen: bool = False
    ) -> Iterator[socket.socket]:
        """A socket that belongs to this machine."""
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


class Node(Machine):
    """One machine of a lab."""

    def __init__(self, topology: Topology, name: str) -> None:
        super().__init__(topology.namespace(name), str(topology.node(name).address))
        self.topology = topology
        self.name = name


class Lab:
    """A lab that is up."""

    def __init__(self, topology: Topology, untouched: dict[str, dict[str, str]] | None = None) -> None:
        self.topology = topology
        self.untouched = untouched or {}
        """Snapshot of every node before its first ``up``."""
        self.external = str(topology.external)
        self.ext = str(EXT)

    def __getitem__(self, name: str) -> Node:
        return Node(self.topology, name)

    def forget_mtus(self) -> None:
        """What errors told of paths: otherwise senders go on to fragment accordingly."""
        for node in ("phone1", "ext"):
            self[node].run("ip", "route", "flush", "cache")


@contextmanager
def lab_that_is_up(topology: Topology) -> Iterator[Lab]:
    """Every node that runs dnat does so, and it is known what all looked like before."""
    try:
        builder.build(topology)
        untouched = {node.name: snapshot(topology.namespace(node.name)) for node in topology.nodes}
        control.up(topology, lambda _: None)
        yield Lab(topology, untouched)
    finally:
        builder.destroy(topology.prefix)


@contextmanager
def operated_lab(topology: Topology, configuration: str, up: Sequence[str]) -> Iterator[Lab]:
    """A lab whose router is configured so, and gets ``OTHER_EXTERNAL``, too; after it the nodes of ``up`` come up."""
    try:
        builder.build(topology)
        lab = Lab(topology)
        lab["ext"].run("ip", "route", "add", OTHER_EXTERNAL, "via", "203.0.113.1")
        lab["router"].dnat_toml.write_text(configuration)
        for name in ("router", *up):
            lab[name].dnatctl("up")
        yield lab
    finally:
        builder.destroy(topology.prefix)


def eventually(check: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Wait until ``check`` gives something true; fails the test otherwise."""
    deadline = time.monotonic() + seconds
    while not (result := check()):
        if time.monotonic() > deadline:
            pytest.fail(f"it did not come to pass within {seconds} s: {what}")
        time.sleep(0.05)
    return result
