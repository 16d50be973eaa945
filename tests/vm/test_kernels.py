"""All programs compile without kernel headers, load and treat packets as they should on kernels of several ages."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from dnatvm import images
from dnatvm.images import REPOSITORY
from dnatvm.machine import Guest, agent_files, job_archive

PYTHON = "/usr/lib/dnat/bin/python3"
SHORT = bool(os.environ.get("DNAT_VM_SHORT"))

LOAD = """
from pathlib import Path
from dnat.dataplane import abi, loader
loader.ensure_bpffs()
for role in ("host", "router"):
    pins = loader.BPFFS / f"load-{role}"
    assert loader.ensure_loaded(role, pins)
    names = sorted(path.name for path in loader.program_pin(pins, "x").parent.iterdir())
    assert names == sorted((*abi.PROGRAMS[role], *abi.XDP_PROGRAMS[role])), names
    print(role, *names)
"""
PACKETS = ["tests/bpf/test_host_packets.py", "tests/bpf/test_router_packets.py"]
MORE_PACKETS = ["tests/bpf/test_router_xdp.py", "tests/bpf/test_host_pool.py", "tests/bpf/test_host_policy.py"]
TRAFFIC = ["tests/bpf/test_traffic.py", "-k", "[offloads-routed"]


@pytest.fixture(scope="session")
def guest(kernel_name: str, installed_tree: Path) -> Iterator[Guest]:
    """A machine that runs a kernel, with the package's files and the packet tests in it."""
    files = agent_files()
    for name in ("pyproject.toml", "tests/conftest.py"):
        files[f"checkout/{name}"] = (REPOSITORY / name).read_bytes()
    job = job_archive(files, {"usr": installed_tree, "checkout/tests/bpf": REPOSITORY / "tests/bpf"})
    kernel = images.kernel(kernel_name)
    with (
        tempfile.TemporaryDirectory(prefix="dnat-vm-") as directory,
        Guest("guest", kernel, images.root_disk(), job, Path(directory)) as running,
    ):
        assert running.run("uname", "-r").out.strip() == kernel.release
        assert not Path(f"/lib/modules/{kernel.release}/build").exists()
        yield running


def test_all_programs_load(guest: Guest) -> None:
    said = guest.run(PYTHON, "-c", LOAD, seconds=600).out
    print(said)
    assert "router_wan_xdp" in said


def test_packets(guest: Guest) -> None:
    """The packet tests that are about the programs; those that time something are for real machines."""
    run_tests(guest, *PACKETS, *([] if SHORT else MORE_PACKETS))


def test_traffic(guest: Guest) -> None:
    """Real sockets in namespaces of the guest, through host and router programs."""
    run_tests(guest, *TRAFFIC)


def run_tests(guest: Guest, *arguments: str) -> None:
    """pytest in the guest; a skipped test fails there, too."""
    command = f"cd /checkout && ulimit -n 65536 && exec {PYTHON} -m pytest -q -p no:cacheprovider --tb=short"
    said = guest.run("sh", "-c", f'{command} "$@"', "sh", *arguments, code=None, seconds=1500, CI="true")
    print(said.out[-300:])
    assert said.code == 0, said.out[-8000:] + said.err
