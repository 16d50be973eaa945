"""The router's program for a WAN without link addresses, on packets as an interface for tunnels brings them."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_bench import EXTERNAL, HOST_A, LAN, OTHER_EXTERNAL, OWN_EXTERNAL, REMOTE, ROUTER
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw
from tun_wire import open_tun

from dnat.dataplane import attach, loader
from dnat.dataplane.router import RouterPlane
from dnat.errors import PlatformError
from dnat.system import netns
from dnat.types import IPv4Address, Owner, PortRange, Protocol

_numbers = itertools.count(1)


class Tunnel:
    """The program on an interface, and the end from which packets come in."""

    def __init__(self, fd: int, plane: RouterPlane) -> None:
        self._fd, self._plane = fd, plane

    def bring(self, packet: Packet) -> dict[str, int]:
        """Let one packet in; returns what was counted. The kernel is through with it when the write is."""
        before = self._plane.counters()
        os.write(self._fd, bytes(packet))
        return {name: value - before[name] for name, value in self._plane.counters().items() if value != before[name]}


@pytest.fixture
def tunnel(router_pins: Path) -> Iterator[Tunnel]:
    name = f"bpf{os.getpid()}-l3-{next(_numbers)}"
    netns.create(name)
    fd = open_tun(name, "wan", offloads=False)
    try:
        with netns.enter(name):
            for command in ("link set lo up", "link set wan mtu 65000 up", f"addr add {OWN_EXTERNAL}/32 dev wan"):
                assert os.system(f"ip {command}") == 0
            index = socket.if_nametoindex("wan")
            plane = RouterPlane.open(router_pins)
            externals = {IPv4Address(EXTERNAL): False, IPv4Address(OWN_EXTERNAL): True}
            local = [IPv4Address(ROUTER), IPv4Address(OWN_EXTERNAL)]
            plane.set_network(1, index, externals, lan=LAN, local=local)
            plane.set_owners([Owner(IPv4Address(EXTERNAL), PortRange(20000, 20015), Protocol.ANY, IPv4Address(HOST_A))])
            attach.attach("wan", "ingress", loader.program_pin(router_pins, "router_wan_l3"), "router_wan_l3")
            yield Tunnel(fd, plane)
            plane.close()
    finally:
        os.close(fd)
        netns.delete(name)


def udp(octets: int = 9, dport: int = 20000, **ends: str) -> Packet:
    return IP(**({"src": REMOTE, "dst": EXTERNAL} | ends)) / UDP(sport=7, dport=dport) / Raw(bytes(octets))


def test_packets_find_their_owner(tunnel: Tunnel) -> None:
    assert tunnel.bring(udp()) == {"router_in": 1}
    assert tunnel.bring(udp(1400)) == {"router_in": 1}
    assert tunnel.bring(udp(dport=9)) == {"drop_no_owner": 1}
    assert tunnel.bring(udp(dst=OWN_EXTERNAL, dport=9)) == {"router_to_self": 1}
    assert tunnel.bring(udp(src=HOST_A)) == {"drop_spoofed": 1}


def test_others_stay_as_they_are(tunnel: Tunnel) -> None:
    assert tunnel.bring(udp(dst=OTHER_EXTERNAL)) == {}
    assert tunnel.bring(IPv6() / UDP() / Raw(b"words")) == {}
    assert tunnel.bring(Raw(bytes(udp())[:20])) == {"drop_malformed": 1}


def test_fragments_ahead_of_their_first_one(tunnel: Tunnel) -> None:
    """What enters again enters without a header, as it came. No other test has had this identification."""
    first = (
        IP(src=REMOTE, dst=EXTERNAL, flags="MF", id=4711) / UDP(sport=7, dport=20000, len=32, chksum=0) / Raw(bytes(8))
    )
    last = IP(src=REMOTE, dst=EXTERNAL, id=4711, proto=17, frag=2) / Raw(bytes(16))
    assert tunnel.bring(last) == {"router_fragment_held": 1}
    assert tunnel.bring(first) == {"router_fragment_released": 1, "router_in": 2}


def test_a_packet_that_is_too_long_for_a_header(tunnel: Tunnel) -> None:
    """The kernel adds none to packets of more than 16 kB, unless they stand for several."""
    assert tunnel.bring(udp(20_000)) == {"drop_rewrite_failed": 1}


def test_programs_and_interfaces_that_do_not_belong_together(tunnel: Tunnel, router_pins: Path) -> None:
    with pytest.raises(PlatformError, match="not an Ethernet interface"):
        attach.attach("wan", "ingress", loader.program_pin(router_pins, "router_wan"), "router_wan")
    with pytest.raises(PlatformError, match="neither Ethernet nor PPP"):
        attach.attach("lo", "ingress", loader.program_pin(router_pins, "router_wan_l3"), "router_wan_l3")
