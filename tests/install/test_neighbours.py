"""Living with others, the real ones: NetworkManager, dhcpcd and dockerd on a host, from Debian's packages."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import neighbours
import pytest
from inside import differences, ip, run, snapshot
from machine import REPOSITORY, Machine
from nodes import Lab, eventually

from dnat.lab import builder, control
from dnat.lab.topology import Topology
from dnat.system import netns

HOOK = REPOSITORY / "packaging/dhcp/dnat"
DHCP_SERVER = """\
port=0
interface=lan
bind-interfaces
dhcp-authoritative
no-ping
dhcp-range=10.66.0.100,10.66.0.150,2m
dhcp-option-force=227,10.66.0.1
dhcp-option-force=58,3
dhcp-leasefile={directory}/leases
pid-file=
user=root
"""
SECONDS = 60.0
WEB, TFTP = 20000, 7769
CGROUP = f"dnat-test-{os.getpid()}"

_numbers = itertools.count(1)
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="machines need root"),
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="the neighbours are Debian's packages"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place on a disk of its own, so that this machine's root can be the lower layer."""
    place = tmp_path_factory.mktemp("work")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture(scope="module")
def layer(work: Path) -> Path:
    name = f"dn{os.getpid()}-install"
    netns.create(name)
    try:
        return neighbours.installed(work, name)
    finally:
        netns.delete(name)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One phone, which is down."""
    topology = Topology(prefix=f"dn{os.getpid()}", phones=1)
    try:
        control.up(topology, lambda _: None)
        Lab(topology)["phone1"].dnatctl("down")
        yield Lab(topology)
    finally:
        builder.destroy(topology.prefix)


@pytest.fixture
def phone(lab: Lab, layer: Path, work: Path) -> Iterator[Machine]:
    """The phone as a machine with these programs and dnat's hooks on it; not up."""
    node = lab["phone1"]
    before = snapshot(node.namespace)
    binds = (REPOSITORY, Path(sys.prefix), Path("/sys/fs/cgroup"))
    machine = Machine(f"phone{next(_numbers)}", (layer, Path("/")), work, node.namespace, binds).start()
    for place in ("etc/NetworkManager/dispatcher.d/dnat", "lib/dhcpcd/dhcpcd-hooks/50-dnat"):
        shutil.copy(HOOK, machine.root / place)
    (machine.root / "etc/NetworkManager/dispatcher.d/pre-up.d/dnat").symlink_to("../dnat")
    # Else NetworkManager waits for udev, which runs for the machine and not for this one.
    machine.run("mount", "-o", "remount,bind,ro", "/sys")
    yield machine
    machine.run(control.DNATCTL, "down", code=None)
    machine.stop()
    for group in (*Path("/sys/fs/cgroup").glob(CGROUP), *Path("/sys/fs/cgroup").glob(f"*/{CGROUP}")):
        subprocess.run(["find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"], check=True)
    # Their programs are gone; what these put into the network goes, too.
    run(node.namespace, "nft", "flush", "ruleset")
    ip(node.namespace, "addr flush dev eth0; link set eth0 down; link set eth0 up")
    run(node.namespace, "ip", "link", "del", "docker0", check=False)
    ip(node.namespace, f"addr add {node.address}/24 dev eth0; route add default via 10.66.0.1")
    left = [line for line in differences(before, snapshot(node.namespace)) if "sched" in line or "157" in line]
    assert left == []


@pytest.fixture
def renewals(lab: Lab, phone: Machine, tmp_path: Path) -> Iterator[Callable[[], int]]:
    """The LAN has DHCP with renewals every few seconds, and the phone no address; counts answered requests."""
    ip(lab["phone1"].namespace, "route del default; addr flush dev eth0; link set eth0 down")
    (tmp_path / "dnsmasq.conf").write_text(DHCP_SERVER.format(directory=tmp_path))
    log = tmp_path / "log"
    command = f"dnsmasq --keep-in-foreground --log-facility=- --conf-file={tmp_path}/dnsmasq.conf".split()
    with log.open("wb") as output:
        process = netns.popen(command, lab["router"].namespace, stdout=output, stderr=output)
    yield lambda: log.read_text(errors="replace").count("DHCPACK(lan)")
    process.terminate()
    process.wait(20)


def up(phone: Machine) -> str:
    return phone.run(control.DNATCTL, "up")


def ports(phone: Machine) -> list[tuple[int, int]]:
    leases = json.loads(phone.run(control.DNATCTL, "show", "leases", "-o", "json"))["leases"]
    return sorted((lease["first"], lease["last"]) for lease in leases)


def is_ours(phone: Machine, lab: Lab, seen: str) -> bool:
    """Whether this is the external address and a port that the host has leased."""
    address, _, port = seen.rpartition(":")
    return address == lab.external and any(first <= int(port) <= last for first, last in ports(phone))


def reaches(phone: Machine, lab: Lab) -> bool:
    """Whether a program that asks for nothing speaks from a leased port of the external address."""
    return is_ours(phone, lab, phone.run("curl", "-sS", "-m", "2", f"http://{lab.ext}/", code=None))


def disturbed(phone: Machine, lab: Lab, *command: str) -> None:
    """The phone speaks as before after somebody has run this on it."""
    before = ports(phone)
    phone.run(*command)
    eventually(lambda: reaches(phone, lab), f"the phone speaks as before after {' '.join(command)}", SECONDS)
    assert ports(phone) == before


def flapped(phone: Machine, lab: Lab, has_noticed: Callable[[], bool]) -> None:
    before = ports(phone)
    ip(lab.topology.switch, "link set phone1 down")
    eventually(has_noticed, "the link's end was noticed", SECONDS)
    ip(lab.topology.switch, "link set phone1 up")
    eventually(lambda: reaches(phone, lab), "the phone speaks as before the flap", SECONDS)
    assert ports(phone) == before


def renewed(phone: Machine, lab: Lab, renewals: Callable[[], int]) -> None:
    before = renewals()
    eventually(lambda: renewals() >= before + 2, "the address was renewed", SECONDS)
    assert reaches(phone, lab)


def test_network_manager(lab: Lab, phone: Machine, renewals: Callable[[], int]) -> None:
    """It takes routes away, and addresses off the loopback, that it did not set; nothing of that lasts."""
    phone.run("sh", "-c", "mkdir -p /run/dbus && dbus-daemon --system --fork")
    phone.run("sh", "-c", "NetworkManager --debug > /var/log/networkmanager.log 2>&1 &")

    def connected() -> bool:
        return "eth0:connected:" in phone.run("nmcli", "-t", "-f", "DEVICE,STATE,CONNECTION", "device", code=None)

    eventually(connected, "NetworkManager has connected the phone", SECONDS)
    # Its dispatcher runs our hook, which the package puts there.
    assert "leased from 10.66.0.1 (named by DHCP)" in up(phone)
    assert reaches(phone, lab)
    renewed(phone, lab, renewals)
    disturbed(phone, lab, "nmcli", "device", "reapply", "eth0")
    disturbed(phone, lab, "nmcli", "connection", "up", "ifname", "eth0")
    disturbed(phone, lab, "sh", "-c", "nmcli device disconnect eth0 && nmcli device connect eth0")
    disturbed(phone, lab, "sh", "-c", "nmcli networking off && nmcli networking on")
    flapped(phone, lab, lambda: not connected())
    phone.run(control.DNATCTL, "down")
    assert connected()
    assert "proto 157" not in phone.run("ip", "route")
    assert phone.run("curl", "-sS", "-m", "5", f"http://{lab.ext}/").startswith("203.0.113.1:")


def test_dhcpcd(lab: Lab, phone: Machine, renewals: Callable[[], int]) -> None:
    """With the two lines that the documentation names."""
    define, option = "define 227 ipaddress dnat_server", "option dnat_server"
    documentation = (REPOSITORY / "docs/operation.md").read_text()
    assert define in documentation and option in documentation
    with (phone.root / "etc/dhcpcd.conf").open("a") as file:
        file.write(f"{define}\n{option}\n")
        # It would ask for some seconds whether somebody else has the address.
        file.write("noarp\n")
    phone.run("sh", "-c", "dhcpcd -4 eth0 > /var/log/dhcpcd.log 2>&1")
    assert "leased from 10.66.0.1 (named by DHCP)" in up(phone)
    assert reaches(phone, lab)
    renewed(phone, lab, renewals)
    disturbed(phone, lab, "sh", "-c", "dhcpcd --rebind -4 eth0 > /var/log/dhcpcd.log 2>&1")
    flapped(phone, lab, lambda: "10.66.0" not in phone.run("ip", "-4", "addr", "show", "dev", "eth0"))
    assert phone.run("find", "/run/dnat/dhcp", "-name", "eth0")
    phone.run("sh", "-c", "dhcpcd --release -4 eth0 > /var/log/dhcpcd.log 2>&1")
    eventually(lambda: not phone.run("find", "/run/dnat/dhcp", "-name", "eth0"), "the hook has taken it back", SECONDS)


IMAGE = """
mkdir -p /srv/image/bin /srv/image/www
cp /bin/busybox /srv/image/bin
echo hello > /srv/image/www/index.html
tar -C /srv/image -c . | docker import - tiny
"""


@pytest.fixture
def docker(phone: Machine) -> Callable[[], None]:
    """A function that starts dockerd, which has an image with BusyBox in it."""

    def start() -> None:
        options = f"--storage-driver vfs --cgroup-parent /{CGROUP}"
        phone.run("sh", "-c", f"dockerd {options} >> /var/log/dockerd.log 2>&1 &")
        eventually(lambda: "Server Version" in phone.run("docker", "info", code=None), "dockerd is up", SECONDS)

    start()
    phone.run("sh", "-ec", IMAGE)
    return start


def busybox(phone: Machine, *command: str, options: tuple[str, ...] = ()) -> str:
    """What a program in a container says."""
    return phone.run("docker", "run", "--rm", *options, "tiny", "/bin/busybox", *command)


def contained(phone: Machine, lab: Lab, *options: str) -> str:
    """Whom the outside sees when a container asks."""
    # Not by BusyBox's wget, which is linked so that it may crash where it finds no resolver.
    ask = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 5 {lab.ext} 80"
    return busybox(phone, "sh", "-c", ask, options=options).rstrip().splitlines()[-1]


def fetched(phone: Machine, lab: Lab) -> tuple[str, str]:
    """A file that a container gets by TFTP (RFC 1350), and whom the server sees: the datagrams both ways of UDP."""
    with lab["ext"].socket(socket.SOCK_DGRAM, TFTP) as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(SECONDS)
        said = pool.submit(busybox, phone, "tftp", "-g", "-r", "file", "-l", "/dev/stdout", lab.ext, str(TFTP))
        asked, (address, port) = server.recvfrom(600)
        assert asked.startswith(b"\0\x01file\0octet\0")
        server.sendto(b"\0\x03\0\x01words", (address, port))
        assert server.recvfrom(600) == (b"\0\x04\0\x01", (address, port))
        return said.result(), f"{address}:{port}"


def test_docker(lab: Lab, phone: Machine, docker: Callable[[], None]) -> None:
    """A container reaches the outside, and is reached at a leased port, whoever is started anew."""
    serve = ("tiny", "/bin/busybox", "httpd", "-f", "-h", "/www")
    phone.run("docker", "run", "--detach", "--restart", "always", "--publish", f"{WEB}:80", *serve)

    def rules() -> str:
        """All but dnat's own."""
        tables = phone.run("nft", "--stateless", "list", "ruleset").split("\ntable ")
        return "\ntable ".join(each for each in tables if not each.startswith("ip dnat-host")).strip()

    def served() -> bool:
        done = lab["ext"].run("curl", "-sS", "-m", "3", f"http://{lab.external}:{WEB}/", code=None)
        return str(done.stdout) == "hello\n"

    def well() -> None:
        """And whatever dnat does changes none of dockerd's rules."""
        eventually(served, "the outside reaches the container at a leased port", SECONDS)
        eventually(lambda: is_ours(phone, lab, contained(phone, lab)), "it speaks from a leased port", SECONDS)
        # With the host's network it is a program of the host like any other.
        assert is_ours(phone, lab, contained(phone, lab, "--network", "host"))
        assert reaches(phone, lab)

    before = rules()
    assert "DOCKER" in before
    up(phone)
    phone.run(control.DNATCTL, "request", "--port", str(WEB))
    well()
    words, seen = fetched(phone, lab)
    assert words == "words" and is_ours(phone, lab, seen)
    assert "2 packets received" in busybox(phone, "ping", "-c", "2", "-W", "15", lab.ext)
    assert rules() == before
    assert "speak from ports of this host" in phone.run(control.DNATCTL, "show")
    pid = phone.run("cat", "/run/docker.pid").strip()
    phone.run("kill", pid)
    eventually(lambda: not phone.alive(pid), "dockerd has ended", SECONDS)
    docker()
    before = rules()
    well()
    phone.run(control.DNATCTL, "down")
    assert phone.run("nft", "--stateless", "list", "ruleset").strip() == before
    assert contained(phone, lab).startswith("203.0.113.1:")
