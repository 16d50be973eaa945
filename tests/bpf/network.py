"""Two hosts, a router, a switch and the outside in network namespaces, joined by the data plane alone (no
daemons).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path

from bpf_bench import EXTERNAL, HOST_A, HOST_B, OWN_EXTERNAL, POOL, REMOTE, ROUTER
from tun_wire import TunWire

from dnat.dataplane import attach, loader
from dnat.dataplane.host import HostPlane
from dnat.dataplane.router import RouterPlane
from dnat.system import netns
from dnat.types import Owner, PortRange, Protocol

OWN_PORTS = {"a": PortRange(20000, 20015), "b": PortRange(20016, 20031)}
POOLS = {"a": POOL, "b": PortRange(POOL.last + 1, POOL.last + 4)}
ADDRESSES = {"a": HOST_A, "b": HOST_B}
NODES = ("a", "b", "router", "switch", "ext")

_numbers = itertools.count(1)


class Network:
    """The namespaces, their interfaces and the planes; ``external`` is shared by hosts ``a`` and ``b``."""

    def __init__(
        self,
        *,
        own: bool,
        offloads: bool = True,
        vlan: int | None = None,
        mtu: int = 1500,
        tun: bool = False,
        filters: bool = False,
    ) -> None:
        """With ``vlan``, every node but the switch sits on tagged links; ``mtu`` is every link's; ``tun``: the WAN has
        no link addresses; ``filters``: there were filters of ours before, as on a kernel without tcx.
        """
        self.external = OWN_EXTERNAL if own else EXTERNAL
        self.own = own
        self._prefix = f"bpf{os.getpid()}-{next(_numbers)}"
        self.offloads = offloads
        self._vlan = vlan
        self._tun = tun
        self._filters = filters
        self._tun_wire: TunWire | None = None
        self.mtu = mtu
        self._planes: list[HostPlane | RouterPlane] = []
        self.hosts: dict[str, HostPlane] = {}

    def _name(self, node: str) -> str:
        return f"{self._prefix}-{node}"

    @contextlib.contextmanager
    def inside(self, node: str) -> Iterator[None]:
        """Sockets opened in the body belong to the node."""
        with netns.enter(self._name(node)):
            yield

    def run(self, node: str, commands: str) -> str:
        """Run commands, separated by semicolons, in a node; returns their output."""
        with self.inside(node):
            return "".join(
                subprocess.run(one.split(), check=True, capture_output=True, text=True, timeout=20).stdout
                for one in commands.split(";")
            )

    def socket(
        self, node: str, kind: socket.SocketKind, port: int, address: str = "0.0.0.0", protocol: int = 0
    ) -> socket.socket:
        """A bound socket in a node, with a timeout."""
        with self.inside(node):
            opened = socket.socket(socket.AF_INET, kind, protocol)
        opened.settimeout(20)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address, port))
        return opened

    def link(self, node: str, interface: str) -> str:
        """Link address of an interface."""
        words = self.run(node, f"ip link show {interface}").split()
        return words[words.index("link/ether") + 1]

    def host_counter(self, node: str, label: str) -> int:
        """A counter of a host's programs."""
        return self.hosts[node].counters()[label]

    def _wire(self) -> None:
        for node in NODES:
            netns.create(self._name(node))
            self.run(node, "ip link set lo up")
        self.run("switch", "ip link add br0 type bridge; ip link set br0 up")
        ends = [("a", "eth0"), ("b", "eth0"), ("router", "lan")]
        for node, interface in ends:
            self._veth(node, interface, "switch", node)
            self.run("switch", f"ip link set dev {node} master br0")
        if self._tun:
            ends = (self._name("router"), "wan"), (self._name("ext"), "eth0")
            self._tun_wire = TunWire(ends, offloads=self.offloads)
            self.run("router", "ip link set wan up")
            self.run("ext", "ip link set eth0 up")
        else:
            self._veth("router", "wan", "ext", "eth0")
        self.run("router", f"ip addr add {ROUTER}/24 dev lan; ip addr add {OWN_EXTERNAL}/24 dev wan")
        self.run("ext", f"ip addr add {REMOTE}/24 dev eth0; ip route add {EXTERNAL}/32 via {OWN_EXTERNAL}")
        self._sysctl("router", {"ip_forward": 1, "conf/lan/accept_local": 1, "conf/lan/rp_filter": 0})
        for node, address in ADDRESSES.items():
            self.run(node, f"ip addr add {address}/24 dev eth0; ip addr add {self.external}/32 dev lo")
            self.run(node, f"ip route replace local {self.external} dev lo mtu {self.mtu} table local")
            self.run(node, f"ip route add default via {ROUTER} src {self.external}")
            silent = {"arp_ignore": 1, "arp_announce": 2, "accept_local": 1, "rp_filter": 0}
            self._sysctl(node, {f"conf/eth0/{name}": value for name, value in silent.items()})
            self._sysctl(node, {"conf/all/rp_filter": 0, "ping_group_range": "0 0"})

    def _veth(self, node: str, interface: str, peer: str, peer_interface: str) -> None:
        ends = [(node, interface), (peer, peer_interface)]
        (near, far) = (f"{name}p" if self._is_tagged(end) else name for end, name in ends)
        self.run(node, f"ip link add {near} type veth peer name {far} netns {self._name(peer)}")
        for (end, name), device in zip(ends, (near, far), strict=True):
            self._bring_up(end, device)
            if device != name:
                self.run(end, f"ip link add link {device} name {name} type vlan id {self._vlan}")
                self._bring_up(end, name)

    def _is_tagged(self, node: str) -> bool:
        return self._vlan is not None and node != "switch"

    def _bring_up(self, node: str, device: str) -> None:
        self.run(node, f"ip link set dev {device} mtu {self.mtu} up")
        if not self.offloads:
            self.run(node, f"ethtool -K {device} tx off rx off tso off gso off gro off")

    def _sysctl(self, node: str, values: Mapping[str, int | str]) -> None:
        with self.inside(node):
            for name, value in values.items():
                Path("/proc/sys/net/ipv4", name).write_text(str(value), encoding="ascii")

    def start(self, pins: Mapping[str, Path]) -> None:
        """Build all of it, fill the maps pinned for ``a``, ``b`` and ``router``, and attach their
        programs.
        """
        self._wire()
        self._pins = pins
        shared = IPv4Address(self.external)
        for node in ADDRESSES:
            with self.inside(node):
                host = HostPlane.open(pins[node])
                self._planes.append(host)
                self.hosts[node] = host
                host.set_ports([], [])
                host.configure(shared, socket.if_nametoindex("eth0"), IPv4Address(ROUTER))
                host.set_ports([(OWN_PORTS[node], Protocol.ANY)], [(POOLS[node], Protocol.ANY)])
            self.attach_host(node)
        with self.inside("router"):
            self.router = RouterPlane.open(pins["router"])
            self._planes.append(self.router)
            self.configure_router()
            self.router.set_owners(
                Owner(shared, ports, Protocol.ANY, IPv4Address(ADDRESSES[node]))
                for node in ADDRESSES
                for ports in (OWN_PORTS[node], POOLS[node])
            )
            self._attach("router", "router_wan_l3" if self._tun else "router_wan", "wan", "ingress")
            self._attach("router", "router_lan", "lan", "ingress")
            if self.own:
                self._attach("router", "router_loop", "lo", "egress")
            for address in ADDRESSES.values():
                self.run("router", f"ping -qc1 -W15 {address}")
            assert self.router.learn_macs() == len(ADDRESSES)

    def configure_router(self) -> None:
        """Tell the router's programs about its interfaces, also after a change of them."""
        with self.inside("router"):
            lan, wan = socket.if_nametoindex("lan"), socket.if_nametoindex("wan")
            self.router.configure(lan, wan, {IPv4Address(self.external): self.own})

    def attach_host(self, node: str) -> None:
        """Put the programs of a host in their places."""
        with self.inside(node):
            self._attach(node, "host_out", "eth0", "egress")
            self._attach(node, "host_in", "eth0", "ingress")
            self._attach(node, "host_loop", "lo", "egress")

    def detach(self, node: str, interface: str, direction: attach.Direction) -> None:
        """Take a program from its place."""
        with self.inside(node):
            attach.detach(interface, direction, pins=self._pins[node], clsact_added=False)

    def _attach(self, node: str, program: str, interface: str, direction: attach.Direction) -> None:
        pin = loader.program_pin(self._pins[node], program)
        if self._filters:
            number = f"pref {attach.PRIORITY} handle {attach.HANDLE} protocol all"
            self.run(node, f"tc qdisc replace dev {interface} clsact")
            self.run(node, f"tc filter replace dev {interface} {direction} {number} bpf da pinned {pin}")
        attach.attach(interface, direction, pin, program)

    def close(self) -> None:
        for plane in self._planes:
            plane.close()
        if self._tun_wire:
            self._tun_wire.close()
        for node in NODES:
            netns.delete(self._name(node))
