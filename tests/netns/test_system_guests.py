"""The translation of containers by itself, in real namespaces: what it touches and ends, and that it goes whole."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from inside import differences, ip, run, snapshot
from nodes import Machine

from dnat.system import flows, guests, netns
from dnat.system.guests import Translation
from dnat.system.journal import Journal
from dnat.system.undo import HANDLERS
from dnat.types import PortRange, Protocol

UDP = socket.SOCK_DGRAM
EXTERNAL, OTHER = IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2")
PORTS, OTHER_PORTS = PortRange(65024, 65535), PortRange(64000, 64015)
HOST, ROUTER, OUTSIDE, ELSEWHERE = "10.66.0.11", "10.66.0.1", "203.0.113.2", "192.0.2.7"
PORT = 7800
NATIVE = {each: (PortRange(5060, 5060), PortRange(20000, 20063)) for each in (Protocol.TCP, Protocol.UDP)}


@dataclass
class Place:
    """A host that masquerades for a guest, and a router that is the outside as well."""

    host: Machine
    router: Machine
    guest: Machine
    path: Path

    def ensure(self, external: IPv4Address = EXTERNAL, ports: PortRange = PORTS) -> list[str]:
        with netns.enter(self.host.namespace):
            return guests.ensure(Journal(self.path), Translation("eth0", external, ports, NATIVE))

    def undo(self) -> list[str]:
        with netns.enter(self.host.namespace):
            return Journal(self.path).undo(HANDLERS)

    def masquerader(self) -> str | None:
        with netns.enter(self.host.namespace):
            return guests.masquerader()

    def seen(self, sender: socket.socket, at: str = OUTSIDE) -> tuple[str, int]:
        """Whom the router sees; the answer comes back."""
        with self.router.socket(UDP, PORT, at) as listener:
            sender.sendto(b"?", (at, PORT))
            words, source = listener.recvfrom(10)
            listener.sendto(words, source)
            assert sender.recvfrom(10) == (b"?", (at, PORT))
        return str(source[0]), int(source[1])


@pytest.fixture
def place(namespace: Callable[[str], str], tmp_path: Path) -> Place:
    host, router, guest = namespace("host"), namespace("router"), namespace("guest")
    ip(router, f"link add lan type veth peer name eth0 netns {host}; addr add {ROUTER}/24 dev lan; link set lan up")
    ip(router, f"addr add {OUTSIDE}/32 dev lo; addr add {ELSEWHERE}/32 dev lo")
    ip(router, f"route add {EXTERNAL} via {HOST}; route add {OTHER} via {HOST}")
    ip(host, f"addr add {HOST}/24 dev eth0; link set eth0 up; route add default via {ROUTER}")
    # For the answers; dnat itself puts them there.
    ip(host, f"addr add {EXTERNAL}/32 dev lo; addr add {OTHER}/32 dev lo")
    ip(host, f"route add 192.0.2.0/24 via {ROUTER}")
    ip(host, f"link add br0 type veth peer name eth0 netns {guest}; addr add 172.17.0.1/16 dev br0; link set br0 up")
    ip(guest, "addr add 172.17.0.2/16 dev eth0; link set eth0 up; route add default via 172.17.0.1")
    run(host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    chain = "chain after { type nat hook postrouting priority srcnat; ip saddr 172.17.0.0/16 oifname eth0 masquerade; }"
    run(host, "nft", f"table inet others {{ {chain}; }}")
    return Place(Machine(host, HOST), Machine(router, ROUTER), Machine(guest, "172.17.0.2"), tmp_path / "journal.json")


def test_what_leaves_by_the_default_route_alone(place: Place) -> None:
    place.ensure()
    with place.guest.socket(UDP) as guest, place.host.socket(UDP, address=HOST) as program:
        address, port = place.seen(guest)
        assert (address, port in PORTS) == (str(EXTERNAL), True)
        assert place.seen(guest, ROUTER)[0] == HOST
        assert place.seen(guest, ELSEWHERE)[0] == HOST
        # What the host itself sends has nothing to do with it.
        assert place.seen(program) == (HOST, program.getsockname()[1])


def test_a_guest_that_uses_one_of_the_ports_keeps_it(place: Place) -> None:
    place.ensure()
    with place.guest.socket(UDP, PORTS.first) as guest:
        assert place.seen(guest) == (str(EXTERNAL), PORTS.first)


def test_flows_follow_what_changes(place: Place) -> None:
    """Those that are no longer as they would be, and no others."""
    place.ensure()
    with place.guest.socket(UDP) as guest:
        first = place.seen(guest)
        assert place.ensure() == []
        assert place.seen(guest) == first
        assert place.ensure(ports=OTHER_PORTS)
        address, port = place.seen(guest)
        assert (address, port in OTHER_PORTS) == (str(EXTERNAL), True)
        assert place.ensure(ports=PortRange(OTHER_PORTS.first, OTHER_PORTS.last + 16))
        assert place.seen(guest) == (address, port)
        place.ensure(OTHER, OTHER_PORTS)
        assert place.seen(guest)[0] == str(OTHER)


def test_more_flows_to_one_destination_than_ports(place: Place) -> None:
    """However slowly they come, each gets through: what is over a limit, as if dnat were not there."""
    place.ensure(ports=OTHER_PORTS)
    run(place.host.namespace, "sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=600")
    with ExitStack() as stack:

        def new() -> str:
            # As if minutes had passed.
            run(place.host.namespace, "nft", "flush", "set", "ip", "dnat-host", "asked")
            return place.seen(stack.enter_context(place.guest.socket(UDP)))[0]

        seen = [new() for _ in range(2 * len(OTHER_PORTS))]
        assert seen == [str(EXTERNAL)] * 6 + [HOST] * (len(seen) - 6)
        with netns.enter(place.host.namespace):
            assert flows.end(EXTERNAL, keep=None) == 6
            assert flows.end(IPv4Address(HOST), keep=None) == len(seen) - 6
        # The kernel forgets some ended flows with each new one.
        assert str(EXTERNAL) in [new() for _ in range(len(seen))]


def test_flows_of_every_protocol_end(place: Place) -> None:
    place.ensure()
    with (
        place.router.socket(socket.SOCK_STREAM, PORT, OUTSIDE, listen=True),
        place.guest.socket(socket.SOCK_STREAM) as stream,
        place.guest.socket(UDP) as guest,
    ):
        stream.connect((OUTSIDE, PORT))
        place.seen(guest)
        place.seen(guest, ROUTER)
        run(place.guest.namespace, "ping", "-c", "1", "-W", "15", OUTSIDE)
        with netns.enter(place.host.namespace):
            assert flows.end(EXTERNAL, keep=PORTS) == 0
            assert flows.end(EXTERNAL, keep=None) == 3
            assert flows.end(EXTERNAL, keep=None) == 0


def test_a_change_that_was_cut_short_is_carried_on(place: Place) -> None:
    """A daemon that is killed has the journal name both addresses, and their flows unended."""
    place.ensure()
    with place.guest.socket(UDP) as guest:
        assert place.seen(guest)[0] == str(EXTERNAL)
        with netns.enter(place.host.namespace):
            journal = Journal(place.path)
            journal.renew(guests.KIND, guests.SUBJECT, addresses=[str(EXTERNAL), str(OTHER)], ports=str(PORTS))
            assert guests.ports_in_use(journal, OTHER) == PORTS
        place.ensure(OTHER)
        assert place.seen(guest)[0] == str(OTHER)
        assert place.undo() == []
        assert place.seen(guest)[0] == HOST


def test_it_goes_without_a_trace(place: Place) -> None:
    before = snapshot(place.host.namespace)
    with place.guest.socket(UDP) as guest:
        place.ensure()
        assert place.seen(guest)[0] == str(EXTERNAL)
        assert differences(before, snapshot(place.host.namespace))
        assert place.undo() == []
        assert differences(before, snapshot(place.host.namespace)) == []
        assert place.seen(guest)[0] == HOST
    assert not place.path.exists()


def test_who_masquerades(place: Place) -> None:
    assert place.masquerader() == "nft inet others after"
    place.ensure()
    run(place.host.namespace, "nft", "delete", "table", "inet", "others")
    assert place.masquerader() is None, "we ourselves do not count"
    run(place.host.namespace, "iptables-legacy", "-t", "nat", "-L")
    assert place.masquerader() == "iptables-legacy -t nat"
    run(place.host.namespace, "sysctl", "-qw", "net.ipv4.ip_forward=0")
    assert place.masquerader() is None
    run(place.host.namespace, "sysctl", "-qw", "net.ipv4.conf.br0.forwarding=1")
    assert place.masquerader() == "iptables-legacy -t nat"
