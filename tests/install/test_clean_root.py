"""The package on clean Debian 12 roots: install, up, traffic, upgrade, down, purge, nothing left behind."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine

from dnat.lab import builder
from dnat.lab.topology import EXT, Topology
from dnat.system import netns

ROUTER = """
roles = ["server", "router"]
[server]
external_addresses = ["198.51.100.1"]
[router]
lan = "lan"
wan = "wan"
"""
BOOKKEEPING = (
    "var/lib/dpkg",
    "var/log",
    "var/cache",
    "var/lib/apt",
    "var/lib/systemd",
    "run",
    "tmp",
    "etc/ld.so.cache",
)

_numbers = itertools.count(1)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="machines need root")


@pytest.fixture
def network() -> Iterator[Topology]:
    """The lab's network, without anything running on it but the servers outside."""
    topology = Topology(prefix=f"di{os.getpid()}-{next(_numbers)}", phones=2)
    builder.build(topology)
    yield topology
    builder.destroy(topology.prefix)


@pytest.fixture
def machines(network: Topology, debian: Path, tmp_path: Path) -> Iterator[dict[str, Machine]]:
    names = ("router", "phone1", "phone2")
    started = {name: Machine(name, (debian,), tmp_path, network.namespace(name)).start() for name in names}
    yield started
    for machine in started.values():
        machine.stop()


def install(machine: Machine, package: Path) -> str:
    shutil.copy(package, machine.root / "root/dnat.deb")
    said = machine.run("dpkg", "-i", "/root/dnat.deb", DEBIAN_FRONTEND="noninteractive")
    (machine.root / "root/dnat.deb").unlink()
    return said


def test_from_installation_to_purge(machines: dict[str, Machine], package: Path, network: Topology) -> None:
    before = {name: machine.files() for name, machine in machines.items()}
    routes = {name: machine.run("ip", "route", "show", "table", "all") for name, machine in machines.items()}
    for machine in machines.values():
        assert "dnatctl init" in install(machine, package)
        assert "not up here" in machine.run("dnatctl", "status", code=5)
        assert machine.run("dnatctl", "--version").startswith("dnatctl")

    router, phone = machines["router"], machines["phone1"]
    (router.root / "etc/dnat/dnat.toml").write_text(ROUTER)
    assert "routing lan to wan" in router.run("dnatctl", "up")
    for name in ("phone1", "phone2"):
        assert "leased from 10.66.0.1" in machines[name].run("dnatctl", "up")
        address, port = machines[name].run("curl", "-sS", "-m", "5", f"http://{EXT}/").strip().split(":")
        assert address == "198.51.100.1"
        assert 10000 <= int(port) < 60000
    phone.run("ping", "-c", "2", "-i", "0.2", "-W", "15", str(EXT))
    assert "leased 198.51.100.1:5060" in phone.run("dnatctl", "request", "--port", "5060")

    # An upgrade replaces the files under a running daemon, whose data plane and leases stay.
    install(phone, package)
    assert "5060" in phone.run("dnatctl", "show", "leases")
    phone.run("curl", "-sS", "-m", "5", f"http://{EXT}/")

    phone.run("dnatctl", "down")
    assert phone.run("ip", "route", "show", "table", "all") == routes["phone1"]
    # Removal takes down what is still up.
    for name, machine in machines.items():
        machine.run("dpkg", "--purge", "dnat")
        assert machine.run("ip", "route", "show", "table", "all") == routes[name]
        assert _left(before[name], machine.files()) == []
        assert not [pid for pid in netns.processes([network.namespace(name)]) if b"dnat.daemon" in _command(pid)]
        assert "dnat" not in machine.run("sh", "-c", "ls /run; mount -t bpf; nft list tables")


def _left(before: dict[str, tuple[int, str]], after: dict[str, tuple[int, str]]) -> list[str]:
    """Paths that came, went or changed, dpkg's own books aside."""
    different = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    return sorted(path for path in different if not path.startswith(BOOKKEEPING))


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""
