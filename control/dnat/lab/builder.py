"""Builds a lab out of network namespaces, and takes it down again, also one that was only half built."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dnat.errors import DnatError, PlatformError, UsageError
from dnat.lab.topology import Node, Port, Topology, belongs
from dnat.system import netns, rtnetlink
from dnat.system.paths import BPF_DIRECTORY, NETNS_CONFIG_DIRECTORY, RUN_DIRECTORY, STATE_DIRECTORY

LAB_DIRECTORY = Path("/run/dnat-lab")
"""One directory for each lab: its topology, the process id of its services."""

_BRIDGE = "lan"
_SERVICES_NODE = "ext"
_PATIENCE = 3.0
"""Seconds that the processes of a lab have to end by themselves."""


def build(topology: Topology) -> bool:
    """Make the lab; False if exactly this one stands already.

    What is left of a half-built lab of the same name is removed first. If anything fails, nothing stays.
    Raises UsageError if another lab of that name stands, PlatformError if the kernel refuses.
    """
    netns.require_root()
    standing = find(topology.prefix)
    if standing == topology:
        return False
    if standing:
        raise UsageError(
            f"a lab called {topology.prefix} with {standing.phones} phones"
            f"{' and the router’s own address' if standing.own_address else ''}"
            f"{f' and a SIP {standing.sip} server' if standing.sip else ''} is up; take it down first"
        )
    destroy(topology.prefix)
    try:
        _build_network(topology)
        for node in topology.nodes:
            _configure(topology, node)
        _start_services(topology)
    except BaseException:
        destroy(topology.prefix)
        raise
    _topology_file(topology.prefix).write_text(json.dumps(asdict(topology)), encoding="utf-8")
    return True


def find(prefix: str) -> Topology | None:
    """The lab of that name if it stands completely."""
    try:
        topology = Topology(**json.loads(_topology_file(prefix).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, DnatError):
        return None
    return topology if all(netns.exists(name) for name in topology.namespaces) else None


def services_running(topology: Topology) -> bool:
    """Whether the services of the outside are alive."""
    try:
        pid = int(_services_file(topology.prefix).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return False
    return pid in netns.processes([topology.namespace(_SERVICES_NODE)])


def destroy(prefix: str) -> list[str]:
    """Take down all of the lab ``prefix``, running programs included; returns the namespaces removed.

    It may be half built or not there at all. Daemons are not asked to put their network back: it goes away
    with them.
    """
    netns.require_root()
    names = [name for name in netns.names() if belongs(name, prefix)]
    _end_processes(names)
    for name in names:
        netns.delete(name)
    for parent in (BPF_DIRECTORY, RUN_DIRECTORY, STATE_DIRECTORY):
        for path in _children(parent, prefix):
            shutil.rmtree(path, ignore_errors=True)
    for path in _children(NETNS_CONFIG_DIRECTORY, prefix):
        shutil.rmtree(path / "dnat", ignore_errors=True)
        # Something else of the user's may be there (resolv.conf); then the directory stays.
        with contextlib.suppress(OSError):
            path.rmdir()
    shutil.rmtree(LAB_DIRECTORY / prefix, ignore_errors=True)
    return names


def _build_network(topology: Topology) -> None:
    for name in topology.namespaces:
        netns.create(name)
        with netns.enter(name):
            _quiet_ipv6()
    _build_lan(topology)
    _build_wan(topology)
    # A route needs the interface towards its gateway up at both ends, so all cables are plugged in by now.
    for node in topology.nodes:
        name = topology.namespace(node.name)
        with netns.enter(name), rtnetlink.socket(f"set up the node {node.name}") as rtnl:
            rtnl.link("set", index=_index(rtnl, "lo"), state="up")
            for port in node.ports:
                _plug_in(rtnl, port)
            for destination, gateway in node.routes:
                rtnl.route("add", dst=str(destination), gateway=str(gateway))


def _build_lan(topology: Topology) -> None:
    """A bridge, and a cable from it to each node; the bridge's ports are called like the nodes."""
    with netns.enter(topology.switch), rtnetlink.socket("build the LAN of the lab") as rtnl:
        rtnl.link("add", ifname=_BRIDGE, kind="bridge", br_mcast_snooping=0)
        bridge = _index(rtnl, _BRIDGE)
        rtnl.link("set", index=bridge, state="up")
        for node, port in _ports(topology, "lan"):
            _cable(rtnl, node.name, topology.namespace(node.name), port.name)
            rtnl.link("set", index=_index(rtnl, node.name), master=bridge, state="up")


def _build_wan(topology: Topology) -> None:
    (router, near), (ext, far) = _ports(topology, "wan")
    name = topology.namespace(router.name)
    with netns.enter(name), rtnetlink.socket("build the WAN of the lab") as rtnl:
        _cable(rtnl, near.name, topology.namespace(ext.name), far.name)


def _ports(topology: Topology, segment: str) -> list[tuple[Node, Port]]:
    return [(node, port) for node in topology.nodes for port in node.ports if port.segment == segment]


def _cable(rtnl: Any, near: str, far_namespace: str, far: str) -> None:
    descriptor = os.open(netns.NETNS_DIRECTORY / far_namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        rtnl.link("add", ifname=near, kind="veth", peer={"ifname": far, "net_ns_fd": descriptor})
    finally:
        os.close(descriptor)


def _plug_in(rtnl: Any, port: Port) -> None:
    index = _index(rtnl, port.name)
    rtnl.addr("add", index=index, address=str(port.address.ip), prefixlen=port.address.network.prefixlen)
    rtnl.link("set", index=index, state="up")


def _index(rtnl: Any, name: str) -> int:
    (index,) = rtnl.link_lookup(ifname=name)
    return int(index)


def _quiet_ipv6() -> None:
    """The lab is about IPv4; IPv6 would talk on every link by itself and clutter each capture."""
    for scope in ("all", "default"):
        path = Path("/proc/sys/net/ipv6/conf") / scope / "disable_ipv6"
        with contextlib.suppress(FileNotFoundError):
            path.write_text("1\n", encoding="ascii")


def _configure(topology: Topology, node: Node) -> None:
    if node.configuration is None:
        return
    directory = NETNS_CONFIG_DIRECTORY / topology.namespace(node.name) / "dnat"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "dnat.toml").write_text(node.configuration, encoding="utf-8")


def _start_services(topology: Topology) -> None:
    pid_file = _services_file(topology.prefix)
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dnat.lab.services", str(pid_file)]
    name = topology.namespace(_SERVICES_NODE)
    started = netns.run(command, name, capture_output=True, text=True, timeout=30)
    if started.returncode != 0:
        raise PlatformError(f"the services of the lab did not start: {started.stderr.strip()}")


def _end_processes(namespaces: list[str]) -> None:
    """Ask once, wait, then insist. Only processes that live in the lab's namespaces are ended."""
    deadline = time.monotonic() + _PATIENCE
    waiting = netns.processes(namespaces)
    _signal(waiting, signal.SIGTERM)
    while waiting and time.monotonic() < deadline:
        time.sleep(0.02)
        waiting = netns.processes(namespaces)
    _signal(waiting, signal.SIGKILL)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def _children(directory: Path, prefix: str) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if belongs(path.name, prefix)]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return []
        raise PlatformError(f"cannot read {directory}: {error.strerror}") from error


def _topology_file(prefix: str) -> Path:
    return LAB_DIRECTORY / prefix / "topology.json"


def _services_file(prefix: str) -> Path:
    return LAB_DIRECTORY / prefix / "services.pid"
