"""Namespaces and cables of one router: ``ends`` holds the far ends of its two cables, where packets begin and end."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from dnat.dataplane import tcx
from dnat.system import netns
from dnatbench.kernel import Module, Plan

EXTERNAL = IPv4Address("198.51.100.1")
HOST = IPv4Address("10.66.0.11")
ROUTER_LAN = IPv4Address("10.66.0.1")
ROUTER_WAN = IPv4Address("203.0.113.1")
GATEWAY = IPv4Address("203.0.113.2")
REMOTE = IPv4Address("192.0.2.1")
"""First of the addresses outside; 4,096 flows each."""
PORTS = range(20000, 20064)
"""What the host leases."""
MACS = {"lan": bytes.fromhex("02000000000a"), "wan": bytes.fromhex("02000000000e")}
"""Of the host and of the gateway, the far ends."""
ROUTER_MACS = {"lan": bytes.fromhex("020000000001"), "wan": bytes.fromhex("020000000002")}

_numbers = itertools.count(1)


def run(namespace: str, *commands: str) -> str:
    """Run commands in a namespace; returns their output."""
    with netns.enter(namespace):
        return "".join(
            subprocess.run(one.split(), check=True, capture_output=True, text=True, timeout=30).stdout
            for one in commands
        )


class Router:
    """A router between a LAN and a WAN cable, with nothing but addresses, routes and neighbours."""

    def __init__(self, label: str) -> None:
        self.label = label
        stem = f"bench{os.getpid()}-{next(_numbers)}"
        self.namespace, self.ends = f"{stem}-router", f"{stem}-ends"
        self.indices: dict[str, int] = {}
        self.ends_indices: dict[str, int] = {}
        self._sinks: dict[str, Module] = {}
        self._links: list[int] = []

    def build(self) -> None:
        for name in (self.namespace, self.ends):
            netns.create(name)
            run(name, "ip link set lo up")
            with netns.enter(name):
                Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
                Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        for side, address in (("lan", ROUTER_LAN), ("wan", ROUTER_WAN)):
            run(
                self.namespace,
                f"ip link add {side} address {_text(ROUTER_MACS[side])} type veth"
                f" peer name {side} address {_text(MACS[side])} netns {self.ends}",
                # The generator's frames enter by NAPI, which GRO brings along.
                f"ethtool -K {side} gro on",
                f"ip addr add {address}/24 dev {side}",
                f"ip link set {side} up",
            )
            run(self.ends, f"ip link set {side} up")
            with netns.enter(self.namespace):
                self.indices[side] = socket.if_nametoindex(side)
            with netns.enter(self.ends):
                self.ends_indices[side] = socket.if_nametoindex(side)
        self.sysctl({"ip_forward": 1, "conf/all/rp_filter": 0, "conf/lan/rp_filter": 0, "conf/wan/rp_filter": 0})
        run(
            self.namespace,
            f"ip neigh replace {HOST} lladdr {_text(MACS['lan'])} dev lan nud permanent",
            f"ip neigh replace {GATEWAY} lladdr {_text(MACS['wan'])} dev wan nud permanent",
            f"ip route add default via {GATEWAY}",
            f"ip route add {EXTERNAL}/32 via {HOST}",
        )

    def sysctl(self, values: Mapping[str, int]) -> None:
        with netns.enter(self.namespace):
            for name, value in values.items():
                Path("/proc/sys/net/ipv4", name).write_text(str(value), encoding="ascii")

    def attach(self, where: str, side: str, program: int, hook: str) -> None:
        """Put a program on an interface of the router (``where`` "router") or of the far ends ("ends"); at TC the way
        that costs least, as dnat's own are.
        """
        namespace = self.namespace if where == "router" else self.ends
        if hook == "tc" and tcx.is_supported():
            with netns.enter(namespace):
                self._links.append(tcx.create(socket.if_nametoindex(side), "ingress", program))
            return
        pin = Path(f"/run/dnat/bpf/{namespace}-{hook}-{side}")
        from dnat.dataplane.bpf import object_pin

        object_pin(program, pin)
        try:
            if hook == "xdp":
                run(namespace, f"ip link set dev {side} xdpdrv pinned {pin}")
            else:
                run(namespace, f"tc qdisc replace dev {side} clsact")
                run(namespace, f"tc filter add dev {side} ingress bpf da pinned {pin}")
        finally:
            pin.unlink()

    def end_packets(self, hook: str) -> None:
        """Have packets that come out of the router dropped and counted at the far ends, the way that costs them least:
        socket buffers by TC, frames that XDP redirected by XDP."""
        for side in ("lan", "wan"):
            sink = Module("programs.c", TARGET=0)
            self.attach("ends", side, sink.program(f"{hook}_drop"), hook)
            self._sinks[side] = sink

    def count_at(self, side: str, module: Module) -> None:
        """Take the arrivals of another program for those at a far end: one that drops on the router itself."""
        self._sinks[side] = module

    def arrived(self, inbound: bool) -> int:
        """Packets that came out of the far side so far."""
        with _opened(self._sinks["lan" if inbound else "wan"]) as value:
            return value

    def plan(self, *, inbound: bool, flows: int, length: int, private: bool = False) -> Plan:
        """Packets through this router; ``private``: hosts send from, and are sent to, LAN addresses of their own."""
        side = "wan" if inbound else "lan"
        inside = HOST if private and not inbound else EXTERNAL
        return Plan(
            ifindex=self.ends_indices[side],
            flows=flows,
            length=length,
            inbound=inbound,
            source=REMOTE if inbound else inside,
            destination=inside if inbound else REMOTE,
            port=PORTS.start,
            ports=len(PORTS),
            mac_destination=ROUTER_MACS[side],
            mac_source=MACS[side],
        )

    def close(self) -> None:
        for link in self._links:
            os.close(link)
        self._links.clear()
        for name in (self.namespace, self.ends):
            netns.delete(name)


@contextmanager
def _opened(module: Module) -> Iterator[int]:
    counter = module.map("arrived")
    try:
        yield struct.unpack("=Q", counter.get(struct.pack("=I", 0)) or bytes(8))[0]
    finally:
        counter.close()


def _text(mac: bytes) -> str:
    return mac.hex(":")
