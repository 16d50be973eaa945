"""The addressing of a host, applied in a real namespace: what it does, and that it goes without a trace."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from inside import differences, ip, run, snapshot

from dnat.errors import PlatformError
from dnat.system import links, netns, sysctl
from dnat.system.host import ensure_host_network
from dnat.system.journal import Journal
from dnat.system.undo import HANDLERS
from dnat.types import PortRange

EXTERNAL = IPv4Address("198.51.100.1")
OTHER_EXTERNAL = IPv4Address("198.51.100.2")
GATEWAY = IPv4Address("10.66.0.1")
PORTS = PortRange(20000, 20063)


@dataclass
class Pair:
    """A host with interface eth0 (10.66.0.11) and a router with interface lan (10.66.0.1)."""

    host: str
    router: str
    journal: Path

    def ensure(self, external: IPv4Address = EXTERNAL, ports: PortRange = PORTS) -> list[str]:
        with netns.enter(self.host):
            return ensure_host_network(Journal(self.journal), "eth0", external, GATEWAY, ports)

    def undo(self) -> list[str]:
        with netns.enter(self.host):
            return Journal(self.journal).undo(HANDLERS)

    def set(self, key: str, value: str) -> None:
        with netns.enter(self.host):
            Path("/proc/sys", key).write_text(value + "\n", encoding="ascii")

    def get(self, key: str) -> str:
        with netns.enter(self.host):
            return sysctl.read(key)


@pytest.fixture
def pair(namespace: Callable[[str], str], tmp_path: Path) -> Iterator[Pair]:
    host, router = namespace("host"), namespace("router")
    ip(router, f"link add lan type veth peer name eth0 netns {host}")
    ip(router, "addr add 10.66.0.1/24 dev lan; link set lan up")
    ip(host, "addr add 10.66.0.11/24 dev eth0; link set eth0 up")
    yield Pair(host, router, tmp_path / "journal.json")


BEFORE = {
    "plain": "route add default via 10.66.0.1",
    "source, protocol and onlink": (
        "route add default via 10.99.0.1 dev eth0 onlink src 10.66.0.11 proto static mtu 1400 advmss 1300"
    ),
    "metric 100": "route add default via 10.66.0.1 proto dhcp metric 100",
    "several": (
        "route add default via 10.66.0.1; route append default via 10.66.0.2; "
        "route add default via 10.66.0.3 metric 50; route add default via 10.66.0.1 table 77; "
        "rule add from 10.66.0.11 table 77"
    ),
    "multipath": "route add default nexthop via 10.66.0.1 weight 2 nexthop via 10.66.0.2 weight 1",
    "nexthop object": "nexthop add id 7 via 10.66.0.1 dev eth0; route add default nhid 7",
    "two addresses": "addr add 192.0.2.5/24 dev eth0; route add default via 192.0.2.1 src 192.0.2.5",
    "none": "addr show",
    "external there": "addr add 198.51.100.1/32 dev lo; route add default via 10.66.0.1",
}


@pytest.mark.parametrize("before", BEFORE)
def test_undo_puts_everything_back_exactly(pair: Pair, before: str) -> None:
    ip(pair.host, BEFORE[before])
    pair.set("net/ipv4/ip_local_port_range", "40000 50000")
    pair.set("net/ipv4/ip_local_reserved_ports", "8080,41000-41010")
    run(pair.host, "nft", "add table inet others { chain c { type filter hook input priority 0; }; }")
    run(pair.host, "tc", "qdisc", "add", "dev", "eth0", "clsact")
    taken = snapshot(pair.host)

    changes = pair.ensure()
    assert differences(taken, snapshot(pair.host))
    assert "default route" in " ".join(changes)
    assert run(pair.host, "ip", "-o", "route", "get", "203.0.113.2").split()[:7] == [
        "203.0.113.2", "via", "10.66.0.1", "dev", "eth0", "src", "198.51.100.1",
    ]  # fmt: skip

    assert pair.ensure() == []
    assert pair.undo() == []
    assert differences(taken, snapshot(pair.host)) == []
    assert not pair.journal.exists()
    assert pair.undo() == []


def test_unbound_sockets_use_the_external_address_and_leased_ports(pair: Pair) -> None:
    ip(pair.host, "route add default via 10.66.0.1")
    pair.set("net/ipv4/ip_local_reserved_ports", "20004-20059")
    pair.ensure()
    leased = {*range(20000, 20004), *range(20060, 20064)}
    used = set()
    with netns.enter(pair.host):
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(len(leased))]
        for one in sockets:
            one.connect(("203.0.113.2", 7))
            address, port = one.getsockname()
            assert address == str(EXTERNAL)
            used.add(port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one_too_many, pytest.raises(OSError):
            one_too_many.connect(("203.0.113.2", 7))
        for one in sockets:
            one.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside:
            inside.connect(("10.66.0.1", 7))
            assert inside.getsockname()[0] == "10.66.0.11"
    assert used == leased


@pytest.mark.parametrize("reverse_path_filter", ["0", "1", "2"])
def test_packets_with_the_shared_source_come_in(pair: Pair, reverse_path_filter: str) -> None:
    """What a router hairpins has the receiver's own address as source; strict filtering must not kill it."""
    ip(pair.host, "route add default via 10.66.0.1")
    pair.set("net/ipv4/conf/all/rp_filter", reverse_path_filter)
    pair.set("net/ipv4/conf/eth0/rp_filter", "1")
    # The router sends it as a host would that shares the address: the address is local there, and routed to
    # the pair's host.
    ip(
        pair.router,
        "addr add 198.51.100.1/32 dev lo; rule add pref 10 from all lookup local; rule del pref 0",
    )
    ip(
        pair.router,
        "route add 198.51.100.1/32 via 10.66.0.11 table 99; rule add pref 5 to 198.51.100.1 lookup 99",
    )
    run(pair.router, "ping", "-c1", "-W15", "-I", "10.66.0.1", "10.66.0.11")  # a host takes no ARP from its own address
    with netns.enter(pair.host):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with netns.enter(pair.router):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.bind(("0.0.0.0", 20001))
        receiver.settimeout(0.5)
        sender.bind(("198.51.100.1", 20005))

        ip(pair.host, "addr add 198.51.100.1/32 dev lo")
        sender.sendto(b"before", ("198.51.100.1", 20001))
        with pytest.raises(TimeoutError):
            receiver.recvfrom(100)
        ip(pair.host, "addr del 198.51.100.1/32 dev lo")

        pair.ensure()
        assert pair.get("net/ipv4/conf/all/rp_filter") == reverse_path_filter
        sender.sendto(b"after", ("198.51.100.1", 20001))
        assert receiver.recvfrom(100) == (b"after", ("198.51.100.1", 20005))


def test_hairpinned_tcp_offers_the_mtu_of_the_lan(pair: Pair) -> None:
    ip(pair.host, "route add default via 10.66.0.1; link set eth0 mtu 1400")
    pair.ensure()
    assert "mtu 1400" in run(pair.host, "ip", "route", "get", "198.51.100.1")
    ip(pair.host, "link set eth0 mtu 1300")
    assert pair.ensure() == ["local route of 198.51.100.1: mtu 1400 → 1300"]
    assert "mtu 1300" in run(pair.host, "ip", "route", "get", "198.51.100.1")


def test_the_host_answers_no_arp_for_the_external_address(pair: Pair) -> None:
    ip(pair.host, "route add default via 10.66.0.1")
    ip(pair.router, "route add 198.51.100.1/32 dev lan")
    pair.ensure()
    run(pair.router, "ping", "-c1", "-W15", "10.66.0.11")
    run(pair.router, "ping", "-c1", "-W1", "198.51.100.1", check=False)
    assert "lladdr" not in run(pair.router, "ip", "neigh", "show", "198.51.100.1")
    assert "lladdr" in run(pair.router, "ip", "neigh", "show", "10.66.0.11")


def test_repairs_what_other_tools_undid(pair: Pair) -> None:
    ip(pair.host, "route add default via 10.66.0.1 proto static")
    taken = snapshot(pair.host)
    pair.ensure()
    wanted = snapshot(pair.host)

    ip(pair.host, "addr del 198.51.100.1/32 dev lo")  # takes the default route with it
    pair.set("net/ipv4/ip_local_port_range", "32768 60999")
    ip(pair.host, "route add default via 10.66.0.1 proto dhcp")
    repaired = pair.ensure()
    assert len(repaired) == 4
    assert differences(wanted, snapshot(pair.host)) == []

    # The route that they put there last is the one that comes back.
    assert pair.undo() == []
    assert "proto dhcp" in run(pair.host, "ip", "route", "show", "default")
    ip(pair.host, "route replace default via 10.66.0.1 proto static")
    assert differences(taken, snapshot(pair.host)) == []


def test_undo_of_a_route_whose_interface_was_made_anew(pair: Pair) -> None:
    """It has gone with its interface; the new interface's stays."""
    ip(pair.host, "route add default via 10.66.0.1")
    pair.ensure()
    ip(pair.host, "link set eth0 down; link set eth0 up; link set eth0 down")
    assert pair.undo() == []
    assert run(pair.host, "ip", "route", "show", "default") == ""


def test_undo_leaves_a_newer_default_route_alone(pair: Pair) -> None:
    ip(pair.host, "route add default via 10.66.0.1")
    pair.ensure()
    ip(pair.host, "route replace default via 10.66.0.2 proto dhcp")
    assert pair.undo() == []
    shown = run(pair.host, "ip", "route", "show", "default")
    assert shown.split() == ["default", "via", "10.66.0.2", "dev", "eth0", "proto", "dhcp"]


def test_switches_to_another_address_and_range(pair: Pair) -> None:
    ip(pair.host, "route add default via 10.66.0.1")
    pair.set("net/ipv4/ip_local_reserved_ports", "8080")
    taken = snapshot(pair.host)
    pair.ensure()
    pair.ensure(OTHER_EXTERNAL, PortRange(30000, 30063))

    assert "198.51.100.1/32" not in run(pair.host, "ip", "addr")
    assert "src 198.51.100.2" in run(pair.host, "ip", "route", "get", "203.0.113.2")
    assert "mtu 1500" in run(pair.host, "ip", "route", "get", "198.51.100.2")
    assert pair.get("net/ipv4/ip_local_port_range") == "30000 30063"
    assert pair.get("net/ipv4/ip_local_reserved_ports") == "8080"
    assert pair.ensure(OTHER_EXTERNAL, PortRange(30000, 30063)) == []
    assert pair.undo() == []
    assert differences(taken, snapshot(pair.host)) == []


def test_the_gateway_stays_the_same_after_up(pair: Pair) -> None:
    ip(pair.host, "addr add 192.0.2.5/24 dev eth0; route add default via 10.66.0.1 metric 100 src 192.0.2.5")
    with netns.enter(pair.host):
        before = links.default_gateway()
    assert (before.interface, before.gateway, before.address) == ("eth0", GATEWAY, IPv4Address("10.66.0.11"))
    pair.ensure()
    with netns.enter(pair.host):
        assert links.default_gateway() == before
        assert links.neighbour(GATEWAY) == before
        with pytest.raises(PlatformError, match=r"203\.0\.113\.9 is on no LAN"):
            links.neighbour(IPv4Address("203.0.113.9"))


def test_errors_name_what_is_there(pair: Pair) -> None:
    with netns.enter(pair.host):
        with pytest.raises(PlatformError, match="no interface called eth7; there are: lo, eth0"):
            links.interface("eth7")
        with pytest.raises(PlatformError, match="no default route"):
            links.default_gateway()
        facts = links.interface("eth0")
    assert (facts.name, facts.mtu, facts.up, [str(a) for a in facts.addresses]) == (
        "eth0", 1500, True, ["10.66.0.11/24"],
    )  # fmt: skip
    ip(pair.host, "addr add 198.51.100.1/24 dev eth0")
    with pytest.raises(PlatformError, match="another interface"):
        pair.ensure()
    assert pair.undo() == []


def test_an_interface_that_is_gone_is_no_problem_for_undo(pair: Pair) -> None:
    ip(pair.host, "route add default via 10.66.0.1 metric 10")
    pair.ensure()
    ip(pair.host, "link del eth0")
    assert pair.undo() == []
    assert "198.51.100.1" not in run(pair.host, "ip", "addr")


def test_works_from_a_thread_while_an_event_loop_runs(pair: Pair) -> None:
    ip(pair.host, "route add default via 10.66.0.1")

    async def reconcile() -> list[str]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.create_task(tick())
        changes = await asyncio.to_thread(pair.ensure)
        changes += await asyncio.to_thread(pair.ensure)
        ticking.cancel()
        assert ticks > 0
        return changes

    assert len(asyncio.run(reconcile())) >= 6


def test_comparing_is_cheap(pair: Pair) -> None:
    ip(pair.host, "route add default via 10.66.0.1")
    pair.ensure()
    start = time.process_time()
    for _ in range(10):
        assert pair.ensure() == []
    # A reconcile loop calls it every few seconds; a tenth of a second of a processor would be felt.
    assert (time.process_time() - start) / 10 < 0.1
