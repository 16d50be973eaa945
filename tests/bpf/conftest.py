"""Programs loaded into the kernel once for a run of the tests, in pins of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bpf_bench import HostBench, RouterBench
from network import Network
from xdp_bench import RouterXdpBench, build_wires

from dnat.dataplane import loader
from dnat.system import netns

LINKS: dict[str, dict[str, Any]] = {
    "offloads": {},
    "no offloads": {"offloads": False},
    "filters": {"filters": True},
    "jumbo": {"mtu": 9000},
    "no link addresses": {"tun": True},
    "no link addresses or offloads": {"tun": True, "offloads": False},
}
"""Links that real traffic is tried on."""

# Present where the kernel has 802.1Q; without it there are no tagged interfaces to be tried.
if Path("/proc/net/vlan").exists():
    LINKS["vlan"] = {"vlan": 20}

# The same of SCTP's own sockets; packets of SCTP are tried everywhere.
collect_ignore = [] if Path("/proc/net/sctp").exists() else ["test_sctp.py"]


@pytest.fixture(scope="session", autouse=True)
def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("loading BPF programs needs root")


@pytest.fixture(scope="session")
def pins() -> Iterator[Path]:
    """A directory in a bpffs."""
    loader.ensure_bpffs()
    path = loader.BPFFS / f"test-{os.getpid()}"
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def host_pins(pins: Path) -> Path:
    """The host programs, loaded."""
    loader.ensure_loaded("host", pins / "host")
    return pins / "host"


@pytest.fixture(scope="session")
def router_pins(pins: Path) -> Path:
    """The router programs, loaded."""
    loader.ensure_loaded("router", pins / "router")
    return pins / "router"


@pytest.fixture
def host(host_pins: Path) -> Iterator[HostBench]:
    """The host programs with empty tables and the ports of ``bpf_bench``."""
    with HostBench(host_pins) as bench:
        yield bench


@pytest.fixture(params=["tc", "xdp"])
def router(request: pytest.FixtureRequest, router_pins: Path) -> Iterator[RouterBench]:
    """The router programs with the owners of ``bpf_bench``: those at TC alone, and behind those at XDP."""
    if request.param == "tc":
        with RouterBench(router_pins) as bench:
            yield bench
    else:
        yield request.getfixturevalue("router_xdp")


@pytest.fixture(scope="session")
def wires(_needs_root: None) -> Iterator[str]:
    """A namespace with the router's interfaces."""
    name = build_wires()
    yield name
    netns.delete(name)


@pytest.fixture
def router_xdp(router_pins: Path, wires: str) -> Iterator[RouterXdpBench]:
    """The router programs at XDP and TC, in a namespace where they find their way."""
    with netns.enter(wires), RouterXdpBench(router_pins) as bench:
        yield bench
        bench.close()


@pytest.fixture(scope="session")
def node_pins(pins: Path) -> dict[str, Path]:
    """Each node has maps, and so programs, of its own."""
    nodes = {"a": "host", "b": "host", "router": "router"}
    for node, role in nodes.items():
        loader.ensure_loaded("host" if role == "host" else "router", pins / node)
    return {node: pins / node for node in nodes}


@pytest.fixture(scope="module", params=["routed", "own"])
def address(request: pytest.FixtureRequest) -> str:
    """Whether the external address is routed to the router or is its own."""
    return str(request.param)


@pytest.fixture(scope="module", params=list(LINKS))
def network(request: pytest.FixtureRequest, address: str, node_pins: dict[str, Path]) -> Iterator[Network]:
    built = Network(own=address == "own", **LINKS[request.param])
    try:
        built.start(node_pins)
        yield built
    finally:
        built.close()
