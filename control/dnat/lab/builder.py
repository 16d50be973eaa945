"""Builds a lab out of network namespaces, and takes it down again, also one that was only half built."""

from __future__ import annotations

import contextlib
import errno
import itertools
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
from dnat.lab import etcd
from dnat.lab.topology import Node, Port, Topology, belongs, check_prefix
from dnat.system import netns, rtnetlink
from dnat.system.paths import BPF_DIRECTORY, NETNS_CONFIG_DIRECTORY, RUN_DIRECTORY, STATE_DIRECTORY

LAB_DIRECTORY = Path("/run/dnat-lab")
"""One directory for each lab: its topology, the process id of its services."""

_BRIDGE, _WAN_BRIDGE = "lan", "wan"
_SERVICES_NODE = "ext"
_ETCD_SECONDS = 60.0
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
            f"{f' and a SIP {standing.sip} server' if standing.sip else ''}"
            f"{f', {standing.routers} routers and a server apart' if standing.servers else ''}"
            f"{', XDP' if standing.xdp else ''}"
            " is up; take it down first"
        )
    destroy(topology.prefix)
    try:
        _build_network(topology)
        if topology.xdp:
            _suit_xdp(topology)
        for node in topology.nodes:
            _configure(topology, node)
        _start_services(topology)
        start_etcd(topology)
    except BaseException:
        destroy(topology.prefix)
        raise
    _topology_file(topology.prefix).write_text(json.dumps(asdict(topology)), encoding="utf-8")
    return True


def find(prefix: str) -> Topology | None:
    """The lab of that name if it stands completely. Raises UsageError for an impossible one."""
    check_prefix(prefix)
    try:
        topology = Topology(**json.loads(_topology_file(prefix).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, DnatError):
        return None
    return topology if all(netns.exists(name) for name in topology.namespaces) else None


def services_running(topology: Topology) -> bool:
    """Whether the services of the outside are alive."""
    return _living(_services_file(topology.prefix), topology.namespace(_SERVICES_NODE)) is not None


def destroy(prefix: str) -> list[str]:
    """Take down all of the lab ``prefix``, running programs included; returns the namespaces removed.

    It may be half built or not there at all. Daemons are not asked to put their network back: it goes away
    with them. Raises UsageError for an impossible prefix.
    """
    check_prefix(prefix)
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
            for destination, gateways in itertools.groupby(node.routes, lambda route: route[0]):
                hops = [{"gateway": str(gateway)} for _, gateway in gateways]
                rtnl.route("add", dst=str(destination), **(hops[0] if len(hops) == 1 else {"multipath": hops}))


def _build_lan(topology: Topology) -> None:
    _build_bridge(topology, "lan", _BRIDGE, "")


def _build_bridge(topology: Topology, segment: str, name: str, suffix: str) -> None:
    """A bridge, and a cable from it to each node; the bridge's ports are called like the nodes."""
    with netns.enter(topology.switch), rtnetlink.socket(f"build the {segment.upper()} of the lab") as rtnl:
        rtnl.link("add", ifname=name, kind="bridge", br_mcast_snooping=0)
        bridge = _index(rtnl, name)
        rtnl.link("set", index=bridge, state="up")
        for node, port in _ports(topology, segment):
            _cable(rtnl, node.name + suffix, topology.namespace(node.name), port.name)
            rtnl.link("set", index=_index(rtnl, node.name + suffix), master=bridge, state="up")


def _build_wan(topology: Topology) -> None:
    """A cable between router and outside; a second bridge for more routers."""
    ports = _ports(topology, "wan")
    if len(ports) > 2:
        _build_bridge(topology, "wan", _WAN_BRIDGE, "-wan")
        with netns.enter(topology.namespace(_SERVICES_NODE)):
            # Each connection keeps to one of the routers.
            Path("/proc/sys/net/ipv4/fib_multipath_hash_policy").write_text("1\n", encoding="ascii")
        return
    (router, near), (ext, far) = ports
    name = topology.namespace(router.name)
    with netns.enter(name), rtnetlink.socket("build the WAN of the lab") as rtnl:
        _cable(rtnl, near.name, topology.namespace(ext.name), far.name)


def _suit_xdp(topology: Topology) -> None:
    """Make cables as XDP needs them: GRO at the routers' far ends, so that they take what it redirects, and whole
    checksums from everybody else, as real cables have, so that it need not leave TCP and UDP to TC.
    """
    others = [node for node in topology.nodes if "router" not in node.roles]
    for node in others:
        _offload(topology.namespace(node.name), "eth0", "tx", "off")
    _offload(topology.namespace(_SERVICES_NODE), "eth0", "gro", "on")
    for node in topology.nodes:
        if "router" in node.roles:
            _offload(topology.switch, node.name, "gro", "on")


def _offload(namespace: str, interface: str, feature: str, state: str) -> None:
    command = ["ethtool", "-K", interface, feature, state]
    done = netns.run(command, namespace, capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        raise PlatformError(f"{interface} in {namespace} cannot have {feature} {state}: {done.stderr.strip()}")


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


def start_etcd(topology: Topology, *names: str) -> None:
    """Start members of the lab's cluster, by default all, and wait until they serve. Those that run stay as they are.

    Raises PlatformError.
    """
    members = [each for each in topology.members if not names or each.name in names]
    for member in members:
        if etcd_pid(topology, member.name) is None:
            namespace = topology.namespace(member.name)
            argv = etcd.command(member, topology.members, STATE_DIRECTORY / namespace / "etcd", topology.prefix)
            launcher = [sys.executable, "-m", "dnat.lab.etcd", str(_etcd_file(topology, member.name)), *argv]
            started = netns.run(launcher, namespace, capture_output=True, text=True, timeout=30)
            if started.returncode != 0:
                raise PlatformError(f"{member.name} did not start: {started.stderr.strip()}")
    deadline = time.monotonic() + _ETCD_SECONDS
    for member in members:
        with netns.enter(topology.namespace(member.name)):
            while not etcd.is_healthy(member):
                if time.monotonic() > deadline:
                    log = etcd.log_of(_etcd_file(topology, member.name))
                    raise PlatformError(f"the etcd member {member.name} does not serve; see {log}")
                time.sleep(0.1)


def etcd_pid(topology: Topology, name: str) -> int | None:
    """The process that is a member; None if it has ended."""
    return _living(_etcd_file(topology, name), topology.namespace(name))


def _etcd_file(topology: Topology, name: str) -> Path:
    return LAB_DIRECTORY / topology.prefix / f"{name}.pid"


def _living(pid_file: Path, namespace: str) -> int | None:
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pid if pid in netns.processes([namespace]) else None


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
