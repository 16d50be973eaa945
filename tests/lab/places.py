"""Where the tests of this directory run: the same commands on the nodes of a lab, whatever the nodes are made of."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dnatvm import images
from dnatvm.guests import Guests
from dnatvm.machine import GuestError

from dnat.lab import builder, control
from dnat.lab.topology import Topology

REPOSITORY = Path(__file__).parents[2]
SERVICES = "dnat.lab.services"
FILES = Path(__file__).parent / "files.sh"
UNANSWERED = "the daemon does not answer"


@dataclass(frozen=True, slots=True)
class Said:
    """How a program ended, and what it said."""

    code: int
    out: str
    err: str


class Place(ABC):
    """A lab that is up, and can be told what to do."""

    installed = True
    """Whether the nodes are machines of their own, with dnat installed as on any machine."""
    python = "/usr/lib/dnat/bin/python3"
    """On the nodes: the interpreter that knows the package dnat."""
    seconds = 60.0
    """How long a command may take, and what was caused may need to come to pass."""

    def __init__(self, topology: Topology, nodes: Sequence[str]) -> None:
        self.topology = topology
        self.nodes = tuple(nodes)

    def run(self, node: str, *argv: str, code: int | None = 0, data: str = "", seconds: float = 0) -> Said:
        """Run a program on a node as root; ``code`` is the exit code that is wanted, None for any."""
        said = self._run(node, argv, data, seconds or self.seconds)
        wrong = f"{node}: {shlex.join(argv)} exited {said.code}: {said.out}{said.err}"
        assert code is None or said.code == code, wrong
        return said

    @abstractmethod
    def _run(self, node: str, argv: Sequence[str], data: str, seconds: float) -> Said: ...

    def eventually(self, node: str, *argv: str, what: str) -> Said:
        """Repeat a command until it succeeds."""
        deadline = time.monotonic() + self.seconds
        while (said := self.run(node, *argv, code=None)).code:
            assert time.monotonic() < deadline, f"{node}: it did not come to pass: {what}: {said.out}{said.err}"
            time.sleep(0.2)
        return said

    @abstractmethod
    def close(self) -> None:
        """Take the lab down."""


class Namespaces(Place):
    """The lab of ``dnatctl lab``."""

    installed = False
    python = sys.executable

    def __init__(self) -> None:
        topology = Topology(prefix=f"dl{os.getpid()}", phones=2)
        super().__init__(topology, [node.name for node in topology.nodes])
        control.up(topology, lambda _: None)

    def _run(self, node: str, argv: Sequence[str], data: str, seconds: float) -> Said:
        done = control.run(self.topology, node, argv, input=data, timeout=seconds)
        return Said(done.returncode, done.stdout, done.stderr)

    def close(self) -> None:
        builder.destroy(self.topology.prefix)


class Installed(Place):
    """Machines that get dnat from the package: up on all that have a role."""

    before: Mapping[str, set[str]]
    """The files of each node before the package was installed."""
    routes: Mapping[str, set[str]]
    """And its routes of IPv4, which alone dnat touches."""

    def run(self, node: str, *argv: str, code: int | None = 0, data: str = "", seconds: float = 0) -> Said:
        try:
            return super().run(node, *argv, code=code, data=data, seconds=seconds)
        except AssertionError as error:
            if UNANSWERED not in str(error):
                raise
            # An emulator that did not run for half a minute: its machine's clocks went on, past dnatctl's patience.
            return super().run(node, *argv, code=code, data=data, seconds=seconds)

    def install(self, package: Path) -> None:
        """Install, configure and start everywhere."""
        self.before = {node: self.files(node) for node in self.nodes}
        self.routes = {node: self.ipv4_routes(node) for node in self.nodes}
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: self._install(node, package), self.nodes))
        router = self.topology.node("router").configuration
        assert router is not None
        self.run("router", "tee", "/etc/dnat/dnat.toml", data=router)
        self.run("router", "systemctl", "enable", "--now", "dnat", seconds=600)
        self.run("ext", self.python, "-m", SERVICES, "/run/services.pid")
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: self.run(node, "dnatctl", "up", seconds=600), self.hosts))

    @property
    def hosts(self) -> list[str]:
        return [node for node in self.nodes if self.topology.node(node).roles == ("host",)]

    def _install(self, node: str, package: Path) -> None:
        self.run(node, "dpkg", "-i", str(package), seconds=600)

    def ipv4_routes(self, node: str) -> set[str]:
        return set(self.run(node, "ip", "-4", "route", "show", "table", "all").out.splitlines())

    def files(self, node: str) -> set[str]:
        """Everything in the root file system: path, mode, size or target."""
        listing = self.run(node, "sh", "-s", data=FILES.read_text(), seconds=4 * self.seconds).out
        return set(listing.splitlines())


class Virtual(Installed):
    """QEMU machines."""

    seconds = 180.0

    def __init__(self, kernel: str, package: Path, phones: int = 1) -> None:
        topology = Topology(phones=phones)
        super().__init__(topology, ["router", "ext", *(f"phone{n}" for n in range(1, phones + 1))])
        self._directory = tempfile.TemporaryDirectory(prefix="dnat-vm-")
        files = {"vm/dnat.deb": package.read_bytes()}
        chosen = images.kernel(kernel)
        self._guests = Guests(topology, self.nodes, chosen, images.root_disk(), files, Path(self._directory.name))
        try:
            self._guests.start()
            self.install(Path("/vm/dnat.deb"))
        except BaseException:
            self.close()
            raise

    def _run(self, node: str, argv: Sequence[str], data: str, seconds: float) -> Said:
        try:
            said = self._guests[node].run(*argv, code=None, data=data.encode(), seconds=seconds)
        except GuestError as error:
            raise AssertionError(str(error)) from error
        return Said(said.code, said.out, said.err)

    def close(self) -> None:
        self._guests.stop()
        self._directory.cleanup()


class Vagrant(Installed):
    """The machines of ``vagrant/Vagrantfile``, which are up, with dnat installed by its provisioning."""

    seconds = 180.0

    def __init__(self) -> None:
        done = self._vagrant("ssh-config")
        self._config = tempfile.NamedTemporaryFile("w", prefix="dnat-ssh-")  # noqa: SIM115
        self._config.write(done)
        self._config.flush()
        names = [line.split()[1] for line in done.splitlines() if line.startswith("Host ")]
        super().__init__(Topology(phones=2), names)
        self.before = {node: set(self.run(node, "cat", "/var/tmp/lab-files").out.splitlines()) for node in names}
        self.routes = {node: set(self.run(node, "cat", "/var/tmp/lab-routes").out.splitlines()) for node in names}
        for node in ("router", *self.hosts):
            self.eventually(node, "dnatctl", "status", what="dnat is up")

    def _vagrant(self, *argv: str) -> str:
        done = subprocess.run(
            ["vagrant", *argv], cwd=REPOSITORY / "vagrant", capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"vagrant {shlex.join(argv)}: {done.stdout}{done.stderr}"
        return done.stdout

    def _run(self, node: str, argv: Sequence[str], data: str, seconds: float) -> Said:
        command = ["ssh", "-F", self._config.name, node, "--", "sudo", "--", shlex.join(argv)]
        done = subprocess.run(command, input=data, capture_output=True, text=True, check=False, timeout=seconds)
        return Said(done.returncode, done.stdout, done.stderr)

    def close(self) -> None:
        self._config.close()
