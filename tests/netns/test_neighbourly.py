"""Living with others: foreign firewall rules, link flaps, DHCP renewals, a changed WAN address."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from inside import ip, run, snapshot
from nodes import Lab, Node, eventually

from dnat.dataplane import attach
from dnat.instance import Instance
from dnat.lab import builder, control
from dnat.lab.topology import Topology
from dnat.system import netns

REPAIR_SECONDS = 40.0
"""The daemon looks every 10 seconds; the machine may be busy."""


@pytest.fixture
def own_phone(prefix: str) -> Iterator[Lab]:
    """A lab of its own with one phone, because these tests break things."""
    topology = Topology(prefix=prefix, phones=1)
    try:
        control.up(topology, lambda _: None)
        yield Lab(topology)
    finally:
        builder.destroy(prefix)


def _reaches(node: Node, lab: Lab) -> bool:
    return node.run("curl", "-sS", "-m", "2", f"http://{lab.ext}/", code=None).stdout.startswith(lab.external)


NETWORKD = """\
set -e
mount --make-rprivate /
# Else it waits for udev, which runs for the machine and not for this namespace.
mount -o remount,bind,ro /sys
mount -t tmpfs tmpfs /run/systemd
mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
cp eth0.network /run/systemd/network/
chown -R systemd-network /run/systemd/netif
exec /lib/systemd/systemd-networkd
"""
ETH0 = """\
[Match]
Name=eth0
[Network]
Address=10.66.0.11/24
Gateway=10.66.0.1
LinkLocalAddressing=no
"""


@pytest.fixture
def networkd(own_phone: Lab, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A function that lets systemd-networkd manage the phone's interface, with its settings as they come."""
    (tmp_path / "eth0.network").write_text(ETH0)
    (tmp_path / "start").write_text(NETWORKD)
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        command = ["ip", "netns", "exec", own_phone["phone1"].namespace, "unshare", "-m", "bash", "start"]
        with (tmp_path / "log").open("wb") as log:
            started.append(subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log))

    yield start
    for process in started:
        process.terminate()
        process.wait(20)


def test_systemd_networkd_that_removes_routes_it_does_not_know(own_phone: Lab, networkd: Callable[[], None]) -> None:
    phone = own_phone["phone1"]
    before = phone.ports("ephemeral")
    networkd()
    # It has taken the interface over when the default route is its own: "proto static".
    eventually(lambda: "proto static" in run(phone.namespace, "ip", "route", "show", "default"), "networkd has come up")
    eventually(lambda: _reaches(phone, own_phone), "the phone speaks from the external address", REPAIR_SECONDS)
    # A cable that is pulled and plugged in again has it put everything in order, its way.
    ip(own_phone.topology.switch, "link set phone1 down")
    ip(own_phone.topology.switch, "link set phone1 up")
    eventually(lambda: _reaches(phone, own_phone), "the phone speaks from the external address again", REPAIR_SECONDS)
    assert phone.ports("ephemeral") == before


DHCP_SERVER = """\
port=0
interface=lan
bind-interfaces
dhcp-authoritative
dhcp-range=10.66.0.100,10.66.0.150,2m
dhcp-leasefile={directory}/leases
pid-file=
user=root
"""


@pytest.fixture
def leased(own_phone: Lab, tmp_path: Path) -> Iterator[Callable[[], int]]:
    """The phone has its LAN address by DHCP, and renews it every few seconds; gives a function that counts how often it
    did.
    """
    router, phone = own_phone["router"], own_phone["phone1"]
    phone.dnatctl("down")
    ip(phone.namespace, "route del default; addr flush dev eth0")
    (tmp_path / "dnsmasq.conf").write_text(DHCP_SERVER.format(directory=tmp_path))
    (tmp_path / "dhclient.conf").write_text("supersede dhcp-renewal-time 2;\nsupersede dhcp-rebinding-time 60;\n")
    # Debian's own script, which would write into the machine's resolv.conf.
    script = Path("/sbin/dhclient-script").read_text().replace("/etc/resolv.conf", str(tmp_path / "resolv.conf"))
    (tmp_path / "script").write_text(script)
    (tmp_path / "script").chmod(0o755)
    log = tmp_path / "log"
    server = f"dnsmasq --keep-in-foreground --log-facility=- --conf-file={tmp_path}/dnsmasq.conf"
    files = f"-cf {tmp_path}/dhclient.conf -lf {tmp_path}/client -pf {tmp_path}/pid -sf {tmp_path}/script"
    started: list[subprocess.Popen[bytes]] = []
    with log.open("wb") as output:
        for node, command in ((router, server), (phone, f"dhclient -d {files} eth0")):
            arguments = ["ip", "netns", "exec", node.namespace, *command.split()]
            started.append(subprocess.Popen(arguments, stdout=output, stderr=output))
    try:
        eventually(lambda: "default via" in run(phone.namespace, "ip", "route"), "the phone has an address", 30)
        phone.dnatctl("up")
        yield lambda: log.read_text(errors="replace").count("DHCPACK(lan)")
    finally:
        for process in started:
            process.terminate()
            process.wait(20)


def test_dhcp_with_a_real_server_and_client(own_phone: Lab, leased: Callable[[], int]) -> None:
    """Renewals change nothing; a link that goes down has the client begin anew, and the phone goes on."""
    phone = own_phone["phone1"]
    assert _reaches(phone, own_phone)
    before, ports = leased(), phone.ports("ephemeral")
    eventually(lambda: leased() >= before + 3, "the lease has been renewed", 60)
    assert _reaches(phone, own_phone)
    ip(phone.namespace, "link set eth0 down")
    ip(phone.namespace, "link set eth0 up")
    # Debian's script puts address and route back with the next renewal's change; a user would wait, or plug in again.
    ip(phone.namespace, "route replace default via 10.66.0.1")
    eventually(lambda: _reaches(phone, own_phone), "the phone speaks from the external address again", REPAIR_SECONDS)
    assert phone.ports("ephemeral") == ports


def test_a_flap_of_the_lan_link(own_phone: Lab) -> None:
    """The kernel forgets every route of a link that goes down; DHCP or the network manager puts the LAN's back."""
    phone = own_phone["phone1"]
    before = phone.ports("ephemeral")
    ip(phone.namespace, "link set eth0 down")
    ip(phone.namespace, "link set eth0 up; route replace default via 10.66.0.1")
    eventually(lambda: _reaches(phone, own_phone), "the phone speaks from the external address again", REPAIR_SECONDS)
    assert phone.ports("ephemeral") == before


def test_a_renewal_by_dhcp_that_replaces_the_default_route(own_phone: Lab) -> None:
    phone = own_phone["phone1"]
    ip(phone.namespace, "route del default")
    ip(phone.namespace, "addr replace 10.66.0.11/24 dev eth0 valid_lft 600 preferred_lft 600")
    ip(phone.namespace, "route replace default via 10.66.0.1 src 10.66.0.11 metric 100")
    eventually(lambda: _reaches(phone, own_phone), "the phone speaks from the external address again", REPAIR_SECONDS)


@pytest.fixture(scope="module")
def settled() -> Iterator[Lab]:
    """A lab for the tests that leave it as they found it."""
    topology = Topology(prefix=f"dtm{os.getpid()}", phones=1)
    lab = Lab(topology)
    try:
        builder.build(topology)
        # Tests that wait make many connections to one place; more ports because of that are another matter.
        lab["phone1"].dnat_toml.parent.mkdir(parents=True)
        lab["phone1"].dnat_toml.write_text("[host]\nephemeral_ports_max = 64\n")
        control.up(topology, lambda _: None)
        yield lab
    finally:
        builder.destroy(topology.prefix)


def test_another_lan_address(settled: Lab) -> None:
    """From a DHCP server that has changed its mind: the router has to send to the new one what comes in."""
    phone = settled["phone1"]
    before = phone.leases()
    for old, new in (("10.66.0.11", "10.66.0.99"), ("10.66.0.99", "10.66.0.11")):
        ip(phone.namespace, f"addr add {new}/24 dev eth0; addr del {old}/24 dev eth0")
        # As another address of that network it has gone with the first one.
        ip(phone.namespace, f"addr replace {new}/24 dev eth0; route replace default via 10.66.0.1")
        _comes_back(phone, settled)
        eventually(lambda new=new: _owners(settled) == {new}, "the router sends to the new one", REPAIR_SECONDS)
        assert phone.leases() == before


def _owners(lab: Lab) -> set[str]:
    """LAN addresses of the hosts; the lab has a SIP server's beside the phone's."""
    return {owner["host"] for owner in lab["router"].show()["owners"]} - {lab["sip"].address}


def test_the_lan_interface_gets_another_name(settled: Lab) -> None:
    phone = settled["phone1"]
    before = phone.leases()
    for old, new in (("eth0", "lan5"), ("lan5", "eth0")):
        ip(phone.namespace, f"link set {old} down; link set {old} name {new}; link set {new} up")
        ip(phone.namespace, "route replace default via 10.66.0.1")
        _comes_back(phone, settled)
        assert phone.leases() == before
    _goes_down(phone, "eth0")
    phone.dnatctl("up")


def test_a_gateway_that_is_no_server_for_a_while(settled: Lab) -> None:
    """Connected to another network, the daemon leaves that alone, and goes on when it is back in its own."""
    phone = settled["phone1"]
    before, pid = phone.leases(), phone.pid()
    ip(phone.namespace, "route replace default via 10.66.0.77")
    eventually(lambda: "trying again" in phone.log(), "the daemon has noticed", REPAIR_SECONDS)
    assert "src" not in run(phone.namespace, "ip", "route", "show", "default")
    ip(phone.namespace, "route replace default via 10.66.0.1")
    _comes_back(phone, settled)
    eventually(lambda: phone.dnatctl("status", code=None).returncode == 0, "it is up", REPAIR_SECONDS)
    assert (phone.leases(), phone.pid()) == (before, pid)


def test_the_lan_interface_goes_and_comes_back(settled: Lab) -> None:
    """As an Ethernet adapter at USB does: another index, the same link address."""
    phone, switch = settled["phone1"], settled.topology.switch
    before = phone.ports("ephemeral")
    mac = json.loads(run(phone.namespace, "ip", "-j", "link", "show", "eth0"))[0]["address"]
    ip(switch, "link del phone1")
    eventually(lambda: "no interface called eth0" in phone.log(), "the daemon has noticed", REPAIR_SECONDS)
    ip(switch, f"link add phone1 type veth peer name eth0 address {mac} netns {phone.namespace}")
    ip(switch, "link set phone1 master lan up")
    ip(phone.namespace, "link set eth0 up; addr add 10.66.0.11/24 dev eth0; route add default via 10.66.0.1")
    _comes_back(phone, settled)
    assert phone.ports("ephemeral") == before
    assert phone.log().count("no interface called eth0") == 1, "once is enough"
    _goes_down(phone, "eth0")
    assert "default via 10.66.0.1 dev eth0" in run(phone.namespace, "ip", "route")
    phone.dnatctl("up")


def _comes_back(phone: Node, lab: Lab) -> None:
    eventually(lambda: _reaches(phone, lab), "the phone speaks from the external address again", REPAIR_SECONDS)


def test_a_firewall_that_flushes_everybodys_rules(settled: Lab) -> None:
    """As `nft -f /etc/nftables.conf` and a start of firewalld do."""
    router, device = settled["router"].namespace, settled["sip"]
    before = run(router, "nft", "-s", "list", "ruleset")
    run(router, "nft", "flush", "ruleset")
    eventually(lambda: run(router, "nft", "-s", "list", "ruleset") == before, "the table is back", REPAIR_SECONDS)
    device.dnatctl("down")
    assert device.run("curl", "-sS", "-m", "5", f"http://{settled.ext}/").stdout.startswith("203.0.113.1:")
    device.dnatctl("up")
    assert "repaired: made the nftables table" in settled["router"].log()


def test_filters_and_settings_that_somebody_removes(settled: Lab) -> None:
    settings = {"phone1": ("host", "eth0", "conf.eth0.arp_ignore"), "router": ("router", "lan", "ip_forward")}
    for name, (role, interface, key) in settings.items():
        namespace = settled[name].namespace
        before = _programs(namespace, interface)
        with netns.enter(namespace):
            attach.detach(interface, "ingress", pins=Instance(namespace).pins(role), clsact_added=False)
        run(namespace, "sysctl", "-qw", f"net.ipv4.{key}=0")
        assert _programs(namespace, interface) != before
        back = partial(lambda n, i, b: _programs(n, i) == b, namespace, interface, before)
        eventually(back, "the programs are back", REPAIR_SECONDS)
        wanted = ("sysctl", "-n", f"net.ipv4.{key}")
        eventually(lambda n=namespace, w=wanted: run(n, *w) == "1\n", "the setting is back", REPAIR_SECONDS)
    _comes_back(settled["phone1"], settled)


def test_several_default_routes_and_ipv6(settled: Lab) -> None:
    """A second way out, which is better, comes and goes; and IPv6 is none of dnat's business."""
    phone = settled["phone1"]
    before = phone.ports("ephemeral")
    ip(phone.namespace, "link add other type veth peer name far; addr add 172.31.0.1/24 dev other")
    ip(phone.namespace, "link set other up; link set far up; route add default via 172.31.0.254 metric 50")
    run(phone.namespace, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0", "net.ipv6.conf.eth0.disable_ipv6=0")
    ip(phone.namespace, "-6 addr add fd00::11/64 dev eth0 nodad; -6 route add default via fd00::1")
    _comes_back(phone, settled)
    assert phone.ports("ephemeral") == before
    phone.dnatctl("down")
    routes = run(phone.namespace, "ip", "route", "show", "default")
    assert "via 172.31.0.254" in routes and "via 10.66.0.1" in routes and "src" not in routes
    phone.dnatctl("up")
    _comes_back(phone, settled)
    assert phone.ports("ephemeral") == before
    ip(phone.namespace, "link del other")
    run(phone.namespace, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    _comes_back(phone, settled)


def _programs(namespace: str, interface: str) -> str:
    """What is on an interface's hooks, by tcx or by clsact."""
    places = (f" of {interface}", f"tc filter show dev {interface} ingress", f"tc filter show dev {interface} egress")
    return "".join(text for place, text in snapshot(namespace).items() if place.endswith(places))


def _goes_down(phone: Node, interface: str) -> None:
    """Nothing stays on the interface."""
    phone.dnatctl("down")
    assert _programs(phone.namespace, interface) == ""
    assert "clsact" not in run(phone.namespace, "tc", "qdisc", "show", "dev", interface)
    for key in ("arp_ignore", "arp_announce", "accept_local"):
        assert run(phone.namespace, "sysctl", "-n", f"net.ipv4.conf.{interface}.{key}") == "0\n", key


def test_a_flap_of_the_wan_link(own_phone: Lab) -> None:
    router, phone = own_phone["router"], own_phone["phone1"]
    ip(router.namespace, "link set wan down")
    ip(router.namespace, f"link set wan up; route replace default via {own_phone.ext}")
    eventually(lambda: _reaches(phone, own_phone), "the phone reaches the outside again", REPAIR_SECONDS)


def test_another_wan_address(own_phone: Lab) -> None:
    """The shared address stays; the router's own, by which devices without PAP are masqueraded, changes."""
    router, phone = own_phone["router"], own_phone["phone1"]
    ip(router.namespace, "addr del 203.0.113.1/24 dev wan; addr add 203.0.113.77/24 dev wan")
    ip(router.namespace, f"route replace default via {own_phone.ext}")
    ip(own_phone["ext"].namespace, f"route replace {own_phone.external} via 203.0.113.77")
    eventually(lambda: _reaches(phone, own_phone), "the phone reaches the outside again", REPAIR_SECONDS)
    device = own_phone["sip"]
    device.dnatctl("down")

    def masqueraded() -> bool:
        done = device.run("curl", "-sS", "-m", "2", f"http://{own_phone.ext}/", code=None)
        return str(done.stdout).startswith("203.0.113.77:")

    eventually(masqueraded, "a device without PAP is masqueraded by the new address", REPAIR_SECONDS)
