"""The router's part of the system, in the lab's network but without dnat's data plane."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from inside import differences, ip, run, snapshot

from dnat.errors import PlatformError
from dnat.lab import builder
from dnat.lab.topology import Topology
from dnat.system import netns, sysctl
from dnat.system.journal import Journal
from dnat.system.router import ensure_router_network
from dnat.system.router_rules import SharedAddress
from dnat.system.undo import HANDLERS
from dnat.types import PortRange

LEASED = PortRange(16384, 49151)
OWN_PORTS = PortRange(50000, 50099)


@dataclass
class Router:
    lab: Topology
    journal: Path

    @property
    def name(self) -> str:
        return self.lab.namespace("router")

    def ensure(self) -> list[str]:
        own = self.lab.own_address
        shared = [SharedAddress(self.lab.external, own, (LEASED,))]
        with netns.enter(self.name):
            return ensure_router_network(Journal(self.journal), "lan", "wan", shared, OWN_PORTS if own else None)

    def undo(self) -> list[str]:
        with netns.enter(self.name):
            return Journal(self.journal).undo(HANDLERS)


@pytest.fixture(params=[False, True], ids=["routed", "own address"])
def router(request: pytest.FixtureRequest, prefix: str, tmp_path: Path) -> Iterator[Router]:
    lab = Topology(prefix=prefix, own_address=request.param)
    builder.build(lab)
    yield Router(lab, tmp_path / "journal.json")
    builder.destroy(prefix)


def udp_socket(name: str, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
    with netns.enter(name):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.settimeout(0.5)
    return made


def test_undo_puts_everything_back_exactly(router: Router) -> None:
    run(router.name, "nft", "add table ip others { chain c { type nat hook postrouting priority 100; }; }")
    run(router.name, "sysctl", "-qw", "net.ipv4.conf.all.accept_redirects=0", "net.ipv4.conf.wan.forwarding=1")
    taken = snapshot(router.name)
    assert router.ensure()
    changed = snapshot(router.name)
    assert differences(taken, changed)
    assert router.ensure() == []
    assert differences(changed, snapshot(router.name)) == []
    # Somebody may save all rules and load them at the next start.
    run(router.name, "sh", "-c", "nft -s list ruleset | nft -c -f -")
    assert router.undo() == []
    assert differences(taken, snapshot(router.name)) == []


def test_repairs_its_table_and_leaves_others_alone(router: Router) -> None:
    router.ensure()
    wanted = snapshot(router.name)
    run(router.name, "nft", "flush chain ip dnat-router leave")
    run(router.name, "nft", "add rule ip dnat-router input udp dport 5727 accept")
    assert router.ensure() == ["replaced the nftables table ip dnat-router"]
    run(router.name, "nft", "delete table ip dnat-router")
    run(router.name, "sysctl", "-qw", "net.ipv4.ip_forward=0")
    assert len(router.ensure()) == 2
    assert differences(wanted, snapshot(router.name)) == []


def test_devices_without_pap_are_masqueraded(router: Router) -> None:
    phone = router.lab.namespace("phone1")
    run(phone, "ping", "-c1", "-W1", "203.0.113.2", check=False)
    router.ensure()
    run(phone, "ping", "-c1", "-W15", "203.0.113.2")
    for _ in range(3):
        seen = run(phone, "curl", "-sS", "--max-time", "20", "http://203.0.113.2/").strip()
        address, _, port = seen.partition(":")
        assert address == "203.0.113.1"
        assert not router.lab.own_address or int(port) in OWN_PORTS
    with udp_socket(phone) as one, udp_socket(router.lab.namespace("ext"), port=9999) as outside:
        one.sendto(b"hello", ("203.0.113.2", 9999))
        _, (address, port) = outside.recvfrom(100)
        assert address == "203.0.113.1"
        assert not router.lab.own_address or port in OWN_PORTS


def test_two_devices_with_the_same_port_get_different_ones(router: Router) -> None:
    router.ensure()
    with (
        udp_socket(router.lab.namespace("phone1"), port=OWN_PORTS.first) as one,
        udp_socket(router.lab.namespace("phone2"), port=OWN_PORTS.first) as other,
        udp_socket(router.lab.namespace("ext"), port=9999) as outside,
    ):
        seen = set()
        for sender in (one, other):
            sender.sendto(b"hello", ("203.0.113.2", 9999))
            seen.add(outside.recvfrom(100)[1])
        assert len(seen) == 2
        assert not router.lab.own_address or all(port in OWN_PORTS for _, port in seen)


@pytest.mark.parametrize("router", [True], indirect=True, ids=["own address"])
def test_the_routers_own_connections_never_use_a_leased_port(router: Router) -> None:
    router.ensure()
    for _ in range(3):
        seen = run(router.name, "curl", "-sS", "--max-time", "20", "http://203.0.113.2/").strip()
        assert int(seen.partition(":")[2]) in OWN_PORTS
    # A device has taken the first of the router's ports towards the same destination: the router's must move.
    with (
        udp_socket(router.lab.namespace("phone1"), port=OWN_PORTS.first) as device,
        udp_socket(router.name, port=OWN_PORTS.first) as own,
        udp_socket(router.lab.namespace("ext"), port=9999) as outside,
    ):
        device.sendto(b"device", ("203.0.113.2", 9999))
        own.sendto(b"router", ("203.0.113.2", 9999))
        seen_ports = {outside.recvfrom(100)[1][1] for _ in range(2)}
        assert len(seen_ports) == 2
        assert all(port in OWN_PORTS for port in seen_ports)


@pytest.mark.parametrize("router", [False], indirect=True, ids=["routed"])
def test_a_router_with_an_address_to_itself_uses_all_its_ports(router: Router) -> None:
    router.ensure()
    with netns.enter(router.name):
        assert sysctl.read("net/ipv4/ip_local_port_range") == "32768 60999"


@pytest.mark.parametrize("router", [True], indirect=True, ids=["own address"])
def test_ping_identifiers_of_the_router_are_its_own_ports(router: Router) -> None:
    """A reply to an identifier that a host has leased would go to that host."""
    router.ensure()
    with netns.enter(router.lab.namespace("ext")):
        listening = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with listening:
        listening.settimeout(1)
        run(router.name, "ping", "-c1", "-W15", "-e", "20000", "203.0.113.2")
        packet = listening.recv(1500)
    icmp = packet[(packet[0] & 15) * 4 :]
    assert icmp[0] == 8
    assert int.from_bytes(icmp[4:6], "big") in OWN_PORTS


def test_no_private_source_leaves(router: Router) -> None:
    """Not even when masquerading is gone, as after a mistake in somebody's rules."""
    router.ensure()
    run(router.name, "nft", "flush chain ip dnat-router masquerade-lan")
    ip(router.lab.namespace("ext"), "route add 10.66.0.0/24 via 203.0.113.1")
    with (
        udp_socket(router.lab.namespace("phone1")) as inside,
        udp_socket(router.lab.namespace("ext"), port=9999) as outside,
    ):
        inside.sendto(b"private", ("203.0.113.2", 9999))
        with pytest.raises(TimeoutError):
            outside.recvfrom(100)
    assert "packets 1 " in run(router.name, "nft", "list", "chain", "ip", "dnat-router", "leave")


def test_no_foreign_source_leaves(router: Router) -> None:
    """A device of the LAN with an address of somewhere else (RFC 2827)."""
    router.ensure()
    phone, ext = router.lab.namespace("phone1"), router.lab.namespace("ext")
    run(router.name, "sysctl", "-qw", "net.ipv4.conf.lan.rp_filter=0", "net.ipv4.conf.all.rp_filter=0")
    ip(phone, "addr add 192.0.2.66/32 dev lo")
    with udp_socket(phone, "192.0.2.66") as inside, udp_socket(ext, port=9999) as outside:
        inside.sendto(b"spoofed", ("203.0.113.2", 9999))
        with pytest.raises(TimeoutError):
            outside.recvfrom(100)
    assert "packets 1 " in run(router.name, "nft", "list", "chain", "ip", "dnat-router", "forward")


def test_pap_comes_from_the_lan_only(router: Router) -> None:
    router.ensure()
    ext, phone = router.lab.namespace("ext"), router.lab.namespace("phone1")
    ip(ext, "route add 10.66.0.0/24 via 203.0.113.1")
    with (
        udp_socket(router.name, port=5727) as server,
        udp_socket(phone, port=5728) as agent,
        udp_socket(ext) as attacker,
    ):
        for target in ("203.0.113.1", "10.66.0.1"):
            attacker.sendto(b"attack", (target, 5727))
        attacker.sendto(b"attack", ("10.66.0.11", 5728))
        with pytest.raises(TimeoutError):
            server.recvfrom(100)
        with pytest.raises(TimeoutError):
            agent.recvfrom(100)
        agent.sendto(b"question", ("10.66.0.1", 5727))
        data, source = server.recvfrom(100)
        assert data == b"question"
        server.sendto(b"answer", source)
        assert agent.recvfrom(100)[0] == b"answer"


def test_packets_to_unowned_ports_do_not_loop(router: Router) -> None:
    """A routed address that nobody owns a port of must not follow the default route back to the outside."""
    ext = router.lab.namespace("ext")
    router.ensure()
    with netns.enter(ext):
        listening = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    with listening, udp_socket(ext) as sender:
        listening.settimeout(0.3)
        sender.sendto(b"lost", (str(router.lab.external), 20000))
        with pytest.raises(TimeoutError):
            listening.recv(1500)
    if not router.lab.own_address:
        assert "blackhole" in ip(router.name, f"route show {router.lab.external}")


def test_shared_traffic_leaves_no_state(router: Router) -> None:
    router.ensure()
    with udp_socket(router.lab.namespace("ext")) as sender:
        sender.sendto(b"shared", (str(router.lab.external), LEASED.first))
        sender.sendto(b"own", ("203.0.113.1", 9))
        source = sender.getsockname()[1]
    table = run(router.name, "cat", "/proc/net/nf_conntrack")
    assert f"dport={LEASED.first}" not in table
    assert f"sport={source}" in table


def test_unknown_interfaces_are_named(router: Router) -> None:
    shared = [SharedAddress(IPv4Address("198.51.100.1"), False, ())]
    with (
        netns.enter(router.name),
        pytest.raises(PlatformError, match="no interface called eth9; there are: lo"),
    ):
        ensure_router_network(Journal(router.journal), "eth9", "wan", shared)
    assert not router.journal.exists()
