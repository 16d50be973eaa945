"""The router's programs at XDP before those at TC, as on an interface that has both."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from pathlib import Path

from bpf_bench import MAC_REMOTE, OWN_EXTERNAL, REDIRECT, REMOTE, Outcome, RouterBench, mac
from scapy.packet import Packet

from dnat.dataplane import abi, objects
from dnat.dataplane.bpf import object_get, program_test_run
from dnat.dataplane.loader import program_pin
from dnat.system import netns

XDP_PASS, XDP_REDIRECT = 2, 4
MAC_WAN = "02:00:00:00:00:02"

_numbers = itertools.count(1)


class RouterXdpBench(RouterBench):
    """As ``RouterBench``; ``run`` gives what XDP and TC make of a packet together.

    To be used in the namespace of ``build_wires``.
    """

    lan_mac, wan_mac = bytes(6), mac(MAC_WAN)

    def __init__(self, pins: Path) -> None:
        self.lan_ifindex, self.wan_ifindex = socket.if_nametoindex("lan"), socket.if_nametoindex("wan")
        self._at_xdp = {name: object_get(program_pin(pins, name)) for name in objects.XDP_PROGRAMS["router"]}
        super().__init__(pins)

    def reset(self) -> None:
        super().reset()
        self.plane.set_links({})
        # Frames of the tests are addressed to what a test run takes for the interface's own address at TC.
        self.plane.set_links({abi.LINK_LAN: (self.lan_ifindex, bytes(6)), abi.LINK_WAN: (self.wan_ifindex, bytes(6))})

    def run(self, program: str, packet: Packet | bytes, context: bytes = b"") -> Outcome:
        if f"{program}_xdp" not in self._at_xdp:
            return super().run(program, packet, context)
        before = self.plane.counters()
        taken = self.run_xdp(program, packet)
        if taken is None:
            assert self.plane.counters() == before, "what is passed on is for TC to count"
            return super().run(program, packet, context)
        _, left = taken
        after = self.plane.counters()
        counted = {label: after[label] - before[label] for label in after if after[label] != before[label]}
        return Outcome(REDIRECT, bytes(packet)[:12] + left[12:], counted)

    def run_xdp(self, program: str, packet: Packet | bytes) -> tuple[str, bytes] | None:
        """To whom XDP sends a packet, and the packet; None: it passes it on, untouched."""
        verdict, left, _ = program_test_run(self._at_xdp[f"{program}_xdp"], bytes(packet))
        if verdict == XDP_PASS:
            assert left == bytes(packet)
            return None
        assert verdict == XDP_REDIRECT
        self.readdressed(bytes(packet), left)
        return self.receivers[-1], left

    def close(self) -> None:
        for fd in self._at_xdp.values():
            os.close(fd)


def build_wires() -> str:
    """Make a namespace with a LAN and a WAN interface, a route to the outside and its gateway; returns its name."""
    name = f"bpf{os.getpid()}-xdp{next(_numbers)}"
    netns.create(name)
    with netns.enter(name):
        for command in (
            "ip link add lan type veth peer name lan-far",
            f"ip link add wan address {MAC_WAN} type veth peer name wan-far",
            "ip link set lan up",
            "ip link set lan-far up",
            "ip link set wan up",
            "ip link set wan-far up",
            f"ip addr add {OWN_EXTERNAL}/24 dev wan",
            f"ip route add default via {REMOTE}",
            f"ip neigh replace {REMOTE} lladdr {MAC_REMOTE} dev wan nud permanent",
            "sysctl -qw net.ipv4.ip_forward=1",
        ):
            subprocess.run(command.split(), check=True, capture_output=True, timeout=20)
    return name
