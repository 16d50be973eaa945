"""The lab's life: builds the network, brings every node up as a real machine would be, runs commands in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dnat.client import Client
from dnat.errors import DnatError, NotRunningError, PlatformError, UsageError
from dnat.instance import Instance
from dnat.lab import builder
from dnat.lab.topology import Node, Topology
from dnat.system import netns

DNATCTL = str(Path(sys.executable).with_name("dnatctl"))
"""The command of this very installation, whatever is on the PATH."""

UP_SECONDS = 60
_TOGETHER = 4
"""Nodes that come up at the same time: each compiles its programs, which takes a core."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What one node is doing."""

    node: Node
    summary: str
    """What its daemon says, or why there is none."""
    up: bool


def up(topology: Topology, say: Say) -> None:
    """Build the lab if it does not stand, and bring up every node that has a role; ``say`` hears of each step.

    Raises DnatError; what was built stays for a look.
    """
    if builder.build(topology):
        say(f"network built: {len(topology.nodes)} nodes in namespaces {topology.prefix}-…")
    nodes = [node for node in topology.nodes if node.roles]
    builder.start_etcd(topology)
    servers = [node for node in nodes if "server" in node.roles]
    routers = [node for node in nodes if node.roles == ("router",)]
    hosts = [node for node in nodes if "host" in node.roles]
    with ThreadPoolExecutor(_TOGETHER) as pool:
        for group in (servers, routers, hosts):
            if group is hosts and topology.authentication == "strict":
                _hand_out_keys(topology, servers[0], hosts)
            for node, said in zip(group, pool.map(lambda node: _node_up(topology, node), group), strict=True):
                say(f"{node.name}: {said}")


def find(prefix: str) -> Topology:
    """The lab that stands under this prefix. Raises UsageError when none does."""
    topology = builder.find(prefix)
    if topology is None:
        raise UsageError(f"there is no lab called {prefix} up; start it with: sudo dnatctl lab up")
    return topology


def status(topology: Topology) -> list[NodeStatus]:
    """What every node is doing."""
    return [_status(topology, node) for node in topology.nodes]


def run(topology: Topology, node: str, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program in a node and collect what it prints; options are those of subprocess.run."""
    options = {"capture_output": True, "text": True, "env": _environment(), **options}
    return netns.run(list(argv), topology.namespace(topology.node(node).name), **options)


def execute(topology: Topology, node: str, argv: Sequence[str]) -> NoReturn:
    """Become a program in a node, as if logged in there."""
    namespace = topology.namespace(topology.node(node).name)
    with netns.enter(namespace):
        try:
            os.execvpe(argv[0], list(argv), _environment() | {"DNAT_NODE": node})
        except FileNotFoundError:
            raise UsageError(f"there is no program called {argv[0]} here") from None
        except OSError as error:
            raise PlatformError(f"{argv[0]} cannot be run: {error.strerror}") from None


def _environment() -> dict[str, str]:
    """Ours, with this installation's commands first on the PATH."""
    path = f"{Path(DNATCTL).parent}:{os.environ.get('PATH', os.defpath)}"
    return {name: value for name, value in os.environ.items() if name != "DNAT_CONFIG"} | {"PATH": path}


def _hand_out_keys(topology: Topology, server: Node, hosts: Sequence[Node]) -> None:
    """What an operator does with a memory stick: hosts that have no key get one."""
    known = {key["name"] for key in json.loads(_do(topology, server, "key", "list", "-o", "json"))["keys"]}
    for host in hosts:
        if host.name not in known:
            _do(topology, host, "key", "install", input=_do(topology, server, "key", "add", host.name))


def _do(topology: Topology, node: Node, *arguments: str, **options: Any) -> str:
    done = run(topology, node.name, [DNATCTL, *arguments], timeout=UP_SECONDS, **options)
    if done.returncode != 0:
        raise PlatformError(f"`dnatctl {' '.join(arguments)}` failed on {node.name}. {done.stderr.strip()}")
    return str(done.stdout)


def _node_up(topology: Topology, node: Node) -> str:
    done = run(topology, node.name, [DNATCTL, "up"], timeout=UP_SECONDS)
    if done.returncode != 0:
        raise PlatformError(f"{node.name} did not come up. {done.stderr.strip()}")
    return str(done.stdout).strip()


def _status(topology: Topology, node: Node) -> NodeStatus:
    if any(node.name == member.name for member in topology.members):
        alive = builder.etcd_pid(topology, node.name) is not None
        return NodeStatus(node, "etcd" if alive else "etcd has ended", alive)
    if not node.roles:
        alive = builder.services_running(topology)
        return NodeStatus(node, "echo and HTTP servers" if alive else "its servers have ended", alive)
    try:
        with Client(Instance(topology.namespace(node.name)).socket) as client:
            return NodeStatus(node, "; ".join(client.call("status")["summary"]), True)
    except NotRunningError as error:
        return NodeStatus(node, str(error), False)
    except DnatError as error:
        return NodeStatus(node, str(error), False)
