"""Containers and virtual machines on a host: they speak from its ports, and nothing else changes for anybody."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import raw
from inside import ip, run
from nodes import SILENCE, Lab, Machine, Node, eventually, lab_that_is_up
from scapy.layers.inet import ICMP

from dnat.lab.topology import Topology
from dnat.system import netns
from dnat.types import PortRange

SECONDS = 40.0
"""How long the daemon may take to see a neighbour, who tells nobody, on a busy machine."""
UDP_SOCKET, TCP_SOCKET = socket.SOCK_DGRAM, socket.SOCK_STREAM
OUTSIDE = 7750
ECHO = 7
NARROW = 1300
_IP_MTU_DISCOVER, _IP_MTU, _DO = 10, 14, 2

DOCKER = """
iptables-nft -t nat -N DOCKER
iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables-nft -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables-nft -t nat -A DOCKER -i docker0 -j RETURN
iptables-nft -N DOCKER
iptables-nft -N DOCKER-ISOLATION-STAGE-1
iptables-nft -N DOCKER-ISOLATION-STAGE-2
iptables-nft -N DOCKER-USER
iptables-nft -P FORWARD DROP
iptables-nft -A FORWARD -j DOCKER-USER
iptables-nft -A FORWARD -j DOCKER-ISOLATION-STAGE-1
iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-nft -A FORWARD -o docker0 -j DOCKER
iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
iptables-nft -A FORWARD -i docker0 -o docker0 -j ACCEPT
iptables-nft -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
iptables-nft -A DOCKER-ISOLATION-STAGE-1 -j RETURN
iptables-nft -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
iptables-nft -A DOCKER-ISOLATION-STAGE-2 -j RETURN
iptables-nft -A DOCKER-USER -j RETURN
"""
"""The rules of dockerd 24 for its default bridge, as iptables-save lists them."""
LIBVIRT = """
iptables-nft -N LIBVIRT_FWI
iptables-nft -N LIBVIRT_FWO
iptables-nft -N LIBVIRT_FWX
iptables-nft -N LIBVIRT_INP
iptables-nft -A INPUT -j LIBVIRT_INP
iptables-nft -A FORWARD -j LIBVIRT_FWX
iptables-nft -A FORWARD -j LIBVIRT_FWI
iptables-nft -A FORWARD -j LIBVIRT_FWO
iptables-nft -A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-nft -A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable
iptables-nft -A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT
iptables-nft -A LIBVIRT_FWO -i virbr0 -j REJECT --reject-with icmp-port-unreachable
iptables-nft -A LIBVIRT_FWX -i virbr0 -o virbr0 -j ACCEPT
iptables-nft -A LIBVIRT_INP -i virbr0 -p udp -m udp --dport 67 -j ACCEPT
iptables-nft -t mangle -N LIBVIRT_PRT
iptables-nft -t mangle -A POSTROUTING -j LIBVIRT_PRT
iptables-nft -t mangle -A LIBVIRT_PRT -o virbr0 -p udp -m udp --dport 68 -j CHECKSUM --checksum-fill
iptables-nft -t nat -N LIBVIRT_PRT
iptables-nft -t nat -A POSTROUTING -j LIBVIRT_PRT
iptables-nft -t nat -A LIBVIRT_PRT -s 192.168.122.0/24 -d 224.0.0.0/24 -j RETURN
iptables-nft -t nat -A LIBVIRT_PRT -s 192.168.122.0/24 -d 255.255.255.255/32 -j RETURN
iptables-nft -t nat -A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p tcp -j MASQUERADE --to-ports 1024-65535
iptables-nft -t nat -A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p udp -j MASQUERADE --to-ports 1024-65535
iptables-nft -t nat -A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE
"""
"""Those of libvirtd 9 for its network ``default``."""
LEGACY = "iptables-legacy -t nat -A POSTROUTING -s 172.18.0.0/16 -o eth0 -j MASQUERADE"
"""Of which nft knows nothing, and nobody tells."""


@dataclass
class Host:
    """A phone with a guest behind a bridge."""

    lab: Lab
    phone: Node
    guest: Machine

    @property
    def local_ports(self) -> PortRange | None:
        """Those that guests speak from."""
        shown = self.phone.call("show")["containers"]
        return PortRange(shown["first"], shown["last"]) if shown["translated"] else None

    def owns(self, address: str, port: int) -> bool:
        """Whether the router knows this port for the phone's."""
        owners = self.lab["router"].call("show")["owners"]
        holders = {each["host"] for each in owners if each["first"] <= port <= each["last"]}
        return (address, holders) == (self.lab.external, {self.phone.address})

    def seen(self) -> tuple[str, int]:
        """Whom a server outside sees when the guest asks."""
        said = self.guest.run("curl", "-sS", "-m", "5", f"http://{self.lab.ext}/").stdout
        address, _, port = said.strip().partition(":")
        return address, int(port)

    def is_masqueraded(self) -> bool:
        """As if dnat were not there: into the phone's LAN address, and by the router."""
        return self.seen()[0] == "203.0.113.1"


@contextmanager
def neighbour(lab: Lab, name: str, bridge: str, network: str, rules: str) -> Iterator[Host]:
    """A guest on a phone that has long been up, and the rules of whoever runs it."""
    phone, inside = lab[name], f"{lab.topology.prefix}-{bridge}"
    netns.create(inside)
    try:
        ip(phone.namespace, f"link add {bridge} type bridge; link add veth0 type veth peer name eth0 netns {inside}")
        ip(phone.namespace, f"link set veth0 master {bridge} up; addr add {network}.1/16 dev {bridge}")
        ip(phone.namespace, f"link set {bridge} up")
        ip(inside, f"link set lo up; addr add {network}.2/16 dev eth0; link set eth0 up")
        ip(inside, f"route add default via {network}.1")
        run(phone.namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for rule in rules.strip().splitlines():
            run(phone.namespace, *rule.split())
        host = Host(lab, phone, Machine(inside, f"{network}.2"))
        eventually(lambda: host.local_ports, "the daemon has seen it", SECONDS)
        yield host
    finally:
        netns.delete(inside)
        ip(phone.namespace, f"link del {bridge}")
        run(phone.namespace, "iptables-legacy", "-t", "nat", "-F")
        run(phone.namespace, "nft", "flush", "ruleset")
        run(phone.namespace, "sysctl", "-qw", "net.ipv4.ip_forward=0")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_that_is_up(Topology(prefix=f"dtg{os.getpid()}", phones=2)) as made:
        yield made


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    with neighbour(lab, "phone1", "docker0", "172.17.0", DOCKER) as made:
        yield made


@pytest.fixture
def outside(lab: Lab) -> Iterator[socket.socket]:
    with lab["ext"].socket(UDP_SOCKET, OUTSIDE) as opened:
        yield opened


def asks(sender: socket.socket, outside: socket.socket, lab: Lab) -> tuple[str, int]:
    """A datagram to the outside and its answer; returns whom the outside sees."""
    words, target = random.randbytes(20), (lab.ext, outside.getsockname()[1])
    sender.sendto(words, target)
    heard, source = outside.recvfrom(100)
    assert heard == words
    outside.sendto(words, source)
    assert sender.recvfrom(100) == (words, target)
    return str(source[0]), int(source[1])


@pytest.mark.parametrize(
    ("bridge", "network", "rules"), [("virbr0", "192.168.122", LIBVIRT), ("legacy0", "172.18.0", LEGACY)]
)
def test_whoever_masquerades(lab: Lab, bridge: str, network: str, rules: str) -> None:
    """libvirt; and somebody whose rules nft does not list."""
    phone = lab["phone2"]
    with neighbour(lab, "phone2", bridge, network, rules) as host:
        assert host.owns(*host.seen())
    eventually(lambda: host.local_ports is None, "without it hosts are as they were", SECONDS)
    assert "dnat-host" not in phone.run("nft", "list", "tables").stdout


def test_tcp(host: Host) -> None:
    assert host.owns(*host.seen())
    url = f"http://{host.lab.ext}/bytes/2000000"
    assert len(host.guest.run("curl", "-sS", "-m", "20", url).stdout) == 2_000_000


def test_udp(host: Host, outside: socket.socket) -> None:
    """One endpoint for all destinations: by it the other party may be told where to answer."""
    with host.guest.socket(UDP_SOCKET) as guest:
        assert host.owns(*asks(guest, outside, host.lab))


def test_ping(host: Host) -> None:
    with raw.icmp(host.lab["ext"]) as heard:
        host.guest.run("ping", "-c", "2", "-i", "0.2", "-W", "15", host.lab.ext)
        echo = heard.wait(lambda packet: packet[ICMP].type == 8)
    assert echo is not None
    assert host.owns(echo.src, echo[ICMP].id)


def test_a_datagram_in_fragments(host: Host) -> None:
    words = random.randbytes(4000)
    with host.guest.socket(UDP_SOCKET) as guest:
        guest.sendto(words, (host.lab.ext, ECHO))
        assert guest.recv(65536) == words


def test_a_guest_learns_the_mtu_of_the_path(host: Host, outside: socket.socket) -> None:
    with host.guest.socket(UDP_SOCKET) as guest:
        guest.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DO)
        guest.connect((host.lab.ext, OUTSIDE))
        guest.send(bytes(1400))
        assert outside.recv(2000) == bytes(1400)
        host.lab["router"].run("ip", "link", "set", "wan", "mtu", str(NARROW))
        try:
            eventually(lambda: not sent(guest, bytes(1400)), "the guest is told", 20)
            assert guest.getsockopt(socket.IPPROTO_IP, _IP_MTU) == NARROW
        finally:
            host.lab["router"].run("ip", "link", "set", "wan", "mtu", "1500")


def sent(sender: socket.socket, words: bytes) -> bool:
    try:
        sender.send(words)
    except OSError as error:
        assert "Message too long" in str(error)
        return False
    return True


def test_a_guest_hears_that_nobody_listens(host: Host) -> None:
    with host.guest.socket(UDP_SOCKET) as guest:
        guest.connect((host.lab.ext, 9))
        guest.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            guest.recv(10)


def test_programs_of_the_host_are_not_disturbed(host: Host, outside: socket.socket) -> None:
    """Not even where a guest uses the same port, whether it is the host's or one that guests have."""
    phone, ports = host.phone, host.local_ports
    assert ports is not None
    for port in (phone.ports("ephemeral").first, ports.last):
        with phone.socket(UDP_SOCKET, port) as program, host.guest.socket(UDP_SOCKET, port) as guest:
            for _ in range(2):
                mine, its = (asks(each, outside, host.lab) for each in (program, guest))
                assert host.owns(*mine) and host.owns(*its)
                assert port in ports or (mine[1] == port and mine != its)
    # The LAN is none of our business.
    with host.guest.socket(UDP_SOCKET) as guest, host.lab["phone2"].socket(UDP_SOCKET, OUTSIDE) as lan:
        guest.sendto(b"?", (host.lab["phone2"].address, OUTSIDE))
        assert lan.recvfrom(10)[1][0] == phone.address


@pytest.mark.parametrize("kind", [UDP_SOCKET, TCP_SOCKET], ids=["UDP", "TCP"])
def test_other_hosts_behind_the_same_address(host: Host, kind: socket.SocketKind) -> None:
    """And the guest's own host, where a program may have leased the port, or be translated to it."""
    lab, phone, other = host.lab, host.phone, host.lab["phone2"]
    protocol = "udp" if kind is UDP_SOCKET else "tcp"
    leases = [(other, other.request("--port", "9101")), (phone, phone.request("--port", "9102"))]
    phone.dnatctl("map", protocol, "4444", "--port", "9103")
    try:
        for node, local, port in ((other, 9101, 9101), (phone, 9102, 9102), (phone, 4444, 9103)):
            with (
                node.socket(kind, local, lab.external, listen=kind is TCP_SOCKET) as program,
                host.guest.socket(kind) as guest,
            ):
                guest.connect((lab.external, port))
                guest.send(b"hello")
                assert hears(program, b"hello", b"there")[0] == (host.guest.address if port == 9102 else lab.external)
                assert guest.recv(10) == b"there"
    finally:
        phone.dnatctl("unmap", protocol, "4444")
        for node, lease in leases:
            node.dnatctl("release", lease["id"])


def hears(program: socket.socket, words: bytes, answer: bytes) -> tuple[str, int]:
    """A server that answers once; returns whom it sees."""
    if program.type == TCP_SOCKET:
        connection, seen = program.accept()
        with connection:
            assert connection.recv(100) == words
            connection.sendall(answer)
    else:
        heard, seen = program.recvfrom(100)
        assert heard == words
        program.sendto(answer, seen)
    return str(seen[0]), int(seen[1])


def test_a_guests_port_leads_to_no_program_of_the_host(host: Host, outside: socket.socket) -> None:
    """What is not an answer to the guest would go to the host itself."""
    with host.guest.socket(UDP_SOCKET) as guest, host.lab["ext"].socket(UDP_SOCKET) as stranger:
        address, port = asks(guest, outside, host.lab)
        bindings = host.phone.call("show")["bindings"]
        (local,) = (each["local_port"] for each in bindings if (each["protocol"], each["port"]) == ("udp", port))
        with host.phone.socket(UDP_SOCKET, local) as program:
            stranger.sendto(b"!", (address, port))
            program.settimeout(SILENCE)
            with pytest.raises(TimeoutError):
                program.recv(10)
        assert asks(guest, outside, host.lab) == (address, port)


def test_guests_leave_a_local_port_that_is_mapped(host: Host, outside: socket.socket) -> None:
    before = host.local_ports
    assert before is not None
    with host.guest.socket(UDP_SOCKET, before.last) as guest:
        asks(guest, outside, host.lab)
        host.phone.dnatctl("map", "udp", str(before.last))
        try:
            now = host.local_ports
            assert now is not None and before.last not in now
            # A flow that goes on does so from another port: this one is the program's alone.
            its = asks(guest, outside, host.lab)
            assert host.owns(*its)
            with host.phone.socket(UDP_SOCKET, before.last) as program:
                assert asks(program, outside, host.lab) != its
        finally:
            host.phone.dnatctl("unmap", "udp", str(before.last))
        assert host.local_ports == now


def test_a_guests_connection_outlives_the_daemon(host: Host) -> None:
    before = host.local_ports
    with host.guest.socket(TCP_SOCKET) as guest:
        guest.settimeout(SECONDS)
        guest.connect((host.lab.ext, ECHO))
        host.phone.kill()
        assert echoes(guest)
        host.phone.dnatctl("up")
        assert echoes(guest)
    assert host.local_ports == before


def echoes(sender: socket.socket) -> bool:
    sender.sendall(b"still there?")
    return sender.recv(100) == b"still there?"


PUBLISHED = """
iptables-nft -t nat -I DOCKER 1 -p udp -m udp --dport 9007 -j DNAT --to-destination 172.17.0.2:5007
iptables-nft -t nat -I DOCKER 1 -p udp -m udp --dport 9008 -j DNAT --to-destination 172.17.0.2:5007
iptables-nft -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p udp -m udp --dport 5007 -j ACCEPT
"""
"""What `docker run --publish 9007:5007/udp` adds, and `--publish 9008:5007/udp`, which is not leased."""


def test_a_published_port_that_is_leased(host: Host) -> None:
    """Who asks at the external address is answered from there, also another host behind it, and our own programs."""
    lease = host.phone.request("--port", "9007")
    for rule in PUBLISHED.strip().splitlines():
        run(host.phone.namespace, *rule.split())
    address = {"ext": host.lab.ext, "phone2": host.lab.external, "phone1": host.lab.external}
    # A guest that asks itself, as Docker has it: the answer must come by the host.
    here = host.guest.address
    run(host.phone.namespace, *f"iptables-nft -t nat -A POSTROUTING -s {here} -d {here} -j MASQUERADE".split())
    run(host.phone.namespace, "ip", "link", "set", "veth0", "type", "bridge_slave", "hairpin", "on")
    with host.guest.socket(UDP_SOCKET, 5007) as server, host.guest.socket(UDP_SOCKET) as guest:
        for published in (9007, 9008):
            guest.connect((host.lab.external, published))
            guest.send(b"who is there?")
            words, source = server.recvfrom(100)
            assert (words, source[0]) == (b"who is there?", "172.17.0.1")
            server.sendto(b"me", source)
            assert guest.recv(100) == b"me"
    for name, seen in address.items():
        with host.guest.socket(UDP_SOCKET, 5007) as guest, host.lab[name].socket(UDP_SOCKET) as stranger:
            stranger.sendto(b"who is there?", (host.lab.external, 9007))
            words, source = guest.recvfrom(100)
            assert (words, source) == (b"who is there?", (seen, stranger.getsockname()[1])), name
            guest.sendto(b"me", source)
            assert stranger.recvfrom(100) == (b"me", (host.lab.external, 9007)), name
    host.phone.dnatctl("release", lease["id"])


def test_commands_tell_of_guests(host: Host) -> None:
    assert "speak from ports of this host" in host.phone.dnatctl("show").stdout
    assert "for containers, too" in host.phone.dnatctl("status").stdout
    doctor = host.phone.dnatctl("doctor", code=None).stdout
    assert "they speak from leased ports" in doctor and "nft ip nat POSTROUTING" in doctor


def test_rules_that_somebody_flushes_come_back(host: Host) -> None:
    """As `systemctl reload nftables` does."""
    phone = host.phone.namespace
    run(phone, "nft", "delete", "table", "ip", "dnat-host")
    eventually(lambda: "snat to" in run(phone, "nft", "list", "ruleset"), "it is back", SECONDS)
    assert host.owns(*host.seen())


def test_many_flows_share_few_ports(host: Host, tmp_path: Path) -> None:
    """As the host's own ephemeral ports do: with different destinations."""
    with ExitStack() as stack, host.phone.configured("translated_ports_max = 32", tmp_path):
        ports = host.local_ports
        assert ports is not None and len(ports) == 16
        targets = [stack.enter_context(host.lab["ext"].socket(UDP_SOCKET, OUTSIDE + each)) for each in range(8)]
        seen = []
        for target in targets:
            for _ in range(12):
                guest = stack.enter_context(host.guest.socket(UDP_SOCKET))
                seen.append(asks(guest, target, host.lab))
        ours = [each for each in seen if host.owns(*each)]
        assert len(ours) >= 4 * len(targets) and len(set(ours)) <= 16
        # Where there are too many for the ports, as if dnat were not there.
        assert {address for address, _ in set(seen) - set(ours)} == {"203.0.113.1"}


def test_down_and_switched_off(host: Host, outside: socket.socket, tmp_path: Path) -> None:
    """A guest's flow goes on as if dnat had never been there, and the rules of others are what they were."""
    phone = host.phone
    with host.guest.socket(UDP_SOCKET) as guest:
        assert host.owns(*asks(guest, outside, host.lab))
        phone.dnatctl("down")
        before = phone.run("nft", "-s", "list", "ruleset").stdout
        assert "dnat-" not in before and "DOCKER" in before
        assert asks(guest, outside, host.lab)[0] == "203.0.113.1"
        assert host.is_masqueraded()
        (tmp_path / "dnat.toml").write_text("[host]\ntranslate_containers = false\n")
        phone.dnatctl("up", "--config", str(tmp_path / "dnat.toml"))
        assert host.is_masqueraded()
        assert phone.run("nft", "-s", "list", "ruleset").stdout == before
        assert "leave by the router's masquerading" in phone.dnatctl("show").stdout
        assert "translate_containers is false" in phone.dnatctl("doctor", code=None).stdout
        phone.dnatctl("reload")
        eventually(lambda: host.owns(*host.seen()), "it is switched on again")
