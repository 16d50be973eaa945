"""Fixtures of the tests that need root: network namespaces with unique names that go away with the test."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from inside import ip, run
from nodes import Lab, Machine, lab_that_is_up
from small import Small

import dnat
from dnat.dataplane import loader
from dnat.dataplane.bpf import Command, bpf, object_pin
from dnat.dataplane.sources import SOURCES
from dnat.lab.topology import Topology
from dnat.system import netns
from dnat.system.paths import BPF_DIRECTORY, RUN_DIRECTORY, STATE_DIRECTORY

_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")


@pytest.fixture
def prefix() -> str:
    """A name that no other test, process or lab uses."""
    return f"dt{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def namespace(prefix: str) -> Iterator[Callable[[str], str]]:
    """A function that makes a namespace, with its loopback up, and returns its name."""
    made: list[str] = []

    def make(node: str) -> str:
        name = f"{prefix}-{node}"
        made.append(name)
        netns.create(name)
        # IPv6 would announce itself in its own time, and make one snapshot differ from the next.
        for scope in ("all", "default"):
            run(name, "sysctl", "-qw", f"net.ipv6.conf.{scope}.disable_ipv6=1")
        ip(name, "link set lo up")
        return name

    yield make
    for name in made:
        for pid in netns.processes([name]):
            os.kill(pid, 9)
        netns.delete(name)
        for directory in (BPF_DIRECTORY, RUN_DIRECTORY, STATE_DIRECTORY):
            shutil.rmtree(directory / name, ignore_errors=True)


@pytest.fixture
def small(namespace: Callable[[str], str], tmp_path: Path) -> Small:
    """A server, not up yet, and two hosts on its LAN."""
    server, hosts = namespace("server"), [namespace("host1"), namespace("host2")]
    ip(server, "link add lan type bridge; addr add 10.77.0.1/24 dev lan; link set lan up")
    for number, host in enumerate(hosts, 1):
        ip(server, f"link add port{number} type veth peer name eth0 netns {host}")
        ip(server, f"link set port{number} master lan up")
        ip(host, f"addr add 10.77.0.1{number}/24 dev eth0; link set eth0 up; route add default via 10.77.0.1")
    machines = [Machine(host, f"10.77.0.1{number}") for number, host in enumerate(hosts, 1)]
    return Small(Machine(server, "10.77.0.1"), machines[0], machines[1], tmp_path / "server.toml")


def _lab(name: str, **options: Any) -> Iterator[Lab]:
    with lab_that_is_up(Topology(prefix=f"dt{os.getpid()}{name}", **options)) as lab:
        yield lab


@pytest.fixture(scope="session")
def routed_lab(_root: None) -> Iterator[Lab]:
    """A lab whose external address is routed to the router. Tests leave it as they find it."""
    yield from _lab("r")


@pytest.fixture(scope="session")
def own_lab(_root: None) -> Iterator[Lab]:
    """A lab whose external address is the router's own WAN address. Tests leave it as they find it."""
    yield from _lab("o", own_address=True)


@pytest.fixture(scope="session")
def xdp_lab(_root: None) -> Iterator[Lab]:
    """A lab with the router's own address as external one, whose router uses XDP. Tests leave it as they find it."""
    yield from _lab("x", own_address=True, xdp=True)


@pytest.fixture(scope="session")
def _sip_lab(_root: None) -> Iterator[Lab]:
    for lab in _lab("s", sip="proxy"):
        for user in ("alice", "bob", "carol"):
            lab["sip"].dnatctl("sip", "users", "add", user, "--password", f"secret-{user}")
        yield lab


@pytest.fixture(scope="module")
def sip_lab(_sip_lab: Lab) -> Iterator[Lab]:
    """A lab with a SIP proxy and three users: alice, bob, carol. What a module leased for its phones is given back."""
    phones = [_sip_lab["phone1"], _sip_lab["phone2"]]
    before = {lease["id"] for phone in phones for lease in phone.call("show")["leases"]}
    yield _sip_lab
    for phone in phones:
        leases = phone.call("show")["leases"]
        asked = [each["id"] for each in leases if each["purpose"] == "explicit" and each["id"] not in before]
        if asked:
            phone.call("release", ids=asked)


@pytest.fixture
def next_version(tmp_path: Path) -> dict[str, str]:
    """The environment in which a copy of dnat runs whose programs are other ones."""
    copy = tmp_path / "next"
    shutil.copytree(Path(dnat.__file__).parent, copy / "control" / "dnat")
    shutil.copytree(SOURCES, copy / "ebpf", dirs_exist_ok=True)
    for name in ("host.c", "router.c"):
        source = copy / "ebpf" / name
        source.write_text(source.read_text() + "\n/* The next version. */\n")
    return {**os.environ, "PYTHONPATH": str(copy / "control")}


@pytest.fixture(params=["routed", "own", "xdp"])
def lab(request: pytest.FixtureRequest) -> Lab:
    """All kinds of lab in turn."""
    lab: Lab = request.getfixturevalue(f"{request.param}_lab")
    return lab


@pytest.fixture
def foreign_program(_root: None) -> Iterator[Callable[[int, int], Path]]:
    """A function that pins a program of a type (linux/bpf.h) that gives every packet one verdict, and is not ours."""
    loader.ensure_bpffs()
    pins: list[Path] = []

    def make(kind: int, verdict: int) -> Path:
        # struct bpf_insn: r0 = verdict; exit.
        instructions = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0))
        licence = ctypes.create_string_buffer(b"GPL")
        fd, _ = bpf(Command.PROG_LOAD, "2I2Q", kind, 2, ctypes.addressof(instructions), ctypes.addressof(licence))
        pins.append(loader.BPFFS / f"test-{os.getpid()}-{next(_numbers)}")
        object_pin(fd, pins[-1])
        os.close(fd)
        return pins[-1]

    yield make
    for pin in pins:
        pin.unlink()
