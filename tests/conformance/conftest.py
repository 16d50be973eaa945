"""One lab for all: two phones as they come, a strict one, one with few ports, and a SIP host.

    phone1, phone2, sip   the defaults
    phone3                filters by address, other timers, inbound packets refresh
    phone4                four ports to translate to, and no more
    phone5                likewise, and says nothing to programs

At the end of a run of all tests, ``docs/conformance.md`` is written.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Generator, Iterator

import pytest
from nodes import Lab, Node, eventually
from requirements import DOCUMENT, HERE, render, requirements
from wire import fill, forget, second_address

from dnat.lab import builder, control
from dnat.lab.topology import Topology
from dnat.system.paths import NETNS_CONFIG_DIRECTORY

STRICT = """\
[host]
filtering = "address-dependent"
inbound_refresh = true

[host.timers]
udp = 130
tcp_established = 8000
tcp_transitory = 250
icmp = 70
"""
SCARCE = """\
[host]
translated_ports = 4
translated_ports_max = 4
"""

SILENT = f'{SCARCE}exhausted = "drop"\n'
SECOND_EXTERNAL = "198.51.100.77"
POOL = f'ports = ["10000-10199"]\nhold_down = 2\nexternal_addresses = ["{SECOND_EXTERNAL}"'

_outcomes: dict[str, bool] = {}


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Tests leave it as they find it."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    topology = Topology(prefix=f"dc{os.getpid()}", phones=5)
    try:
        builder.build(topology)
        for phone, text in (("phone3", STRICT), ("phone4", SCARCE), ("phone5", SILENT)):
            directory = NETNS_CONFIG_DIRECTORY / topology.namespace(phone) / "dnat"
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "dnat.toml").write_text(text, encoding="utf-8")
        control.up(topology, lambda _: None)
        made = Lab(topology)
        made["ext"].run("ip", "addr", "add", f"{second_address(made)}/24", "dev", "eth0")
        yield made
    finally:
        builder.destroy(topology.prefix)


@pytest.fixture(scope="session")
def pool_lab() -> Iterator[Lab]:
    """Two external addresses that are no neighbours, with room for two hosts each; ports are soon free again."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    topology = Topology(prefix=f"dcp{os.getpid()}")
    try:
        builder.build(topology)
        made = Lab(topology)
        path = NETNS_CONFIG_DIRECTORY / topology.namespace("router") / "dnat" / "dnat.toml"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("[server]\nexternal_addresses = [", f"[server]\n{POOL}, "), encoding="utf-8")
        made["ext"].run("ip", "addr", "add", f"{second_address(made)}/24", "dev", "eth0")
        made["ext"].run("ip", "route", "add", SECOND_EXTERNAL, "via", "203.0.113.1")
        control.up(topology, lambda _: None)
        yield made
    finally:
        builder.destroy(topology.prefix)


@contextlib.contextmanager
def _exhausted(lab: Lab, phone: Node) -> Iterator[list[socket.socket]]:
    """UDP sockets that hold all four ports that a host can have; its daemon knows that there are no more."""
    with contextlib.ExitStack() as stack:
        sockets = fill(stack, phone, lab, [7000, 7001, 7002, 7003])
        with contextlib.closing(phone.plane()) as plane:
            eventually(lambda: plane.exhausted, "known to be exhausted", seconds=20)
        yield sockets


@pytest.fixture(scope="session")
def few_ports(lab: Lab) -> Iterator[list[socket.socket]]:
    """The four sockets of phone4."""
    with _exhausted(lab, lab["phone4"]) as sockets:
        yield sockets


@pytest.fixture(scope="session")
def quiet(lab: Lab) -> Iterator[Node]:
    """phone5, likewise."""
    with _exhausted(lab, lab["phone5"]):
        yield lab["phone5"]


@pytest.fixture(autouse=True)
def _fresh(lab: Lab) -> None:
    for name in ("phone1", "phone2", "phone3"):
        forget(lab[name])


@pytest.fixture
def phone(lab: Lab) -> Node:
    return lab["phone1"]


@pytest.fixture
def other(lab: Lab) -> Node:
    """Another host behind the same address."""
    return lab["phone2"]


@pytest.fixture
def strict(lab: Lab) -> Node:
    return lab["phone3"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.path.parent == HERE:
        name = f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
        _outcomes[name] = _outcomes.get(name, True) and report.passed
    return report


def pytest_sessionfinish() -> None:
    if {row.test for row in requirements() if not row.without} <= _outcomes.keys():
        DOCUMENT.write_text(render(_outcomes), encoding="utf-8")
