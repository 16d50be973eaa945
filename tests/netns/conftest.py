"""Fixtures of the tests that need root: network namespaces with unique names that go away with the test."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from inside import ip, run
from nodes import Lab

from dnat.lab import builder, control
from dnat.lab.topology import Topology
from dnat.system import netns

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
        shutil.rmtree(Path("/run/dnat") / name, ignore_errors=True)


def _lab(name: str, *, own_address: bool, sip: str | None = None) -> Iterator[Lab]:
    topology = Topology(prefix=f"dt{os.getpid()}{name}", own_address=own_address, sip=sip)
    try:
        control.up(topology, lambda _: None)
        yield Lab(topology)
    finally:
        builder.destroy(topology.prefix)


@pytest.fixture(scope="session")
def routed_lab(_root: None) -> Iterator[Lab]:
    """A lab whose external address is routed to the router. Tests leave it as they find it."""
    yield from _lab("r", own_address=False)


@pytest.fixture(scope="session")
def own_lab(_root: None) -> Iterator[Lab]:
    """A lab whose external address is the router's own WAN address. Tests leave it as they find it."""
    yield from _lab("o", own_address=True)


@pytest.fixture(scope="session")
def sip_lab(_root: None) -> Iterator[Lab]:
    """A lab with a SIP proxy and three users: alice, bob, carol. Tests leave it as they find it."""
    for lab in _lab("s", own_address=False, sip="proxy"):
        for user in ("alice", "bob", "carol"):
            lab["sip"].dnatctl("sip", "users", "add", user, "--password", f"secret-{user}")
        yield lab


@pytest.fixture(params=["routed", "own"])
def lab(request: pytest.FixtureRequest) -> Lab:
    """Both kinds of lab in turn."""
    lab: Lab = request.getfixturevalue(f"{request.param}_lab")
    return lab
