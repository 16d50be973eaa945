"""A host finds its server: configured, by DHCP, at the gateway; with real DHCP servers and a real client."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from inside import ip
from nodes import Machine, eventually

from dnat.system import netns
from dnat.system.dhcp import parse

HOOK = Path(__file__).parents[2] / "packaging/dhcp/dnat"
EXTERNAL = "198.51.100.9"
DNSMASQ = """\
port=0
no-daemon
user=root
no-ping
interface=lan
bind-interfaces
dhcp-range=10.77.0.50,10.77.0.60,255.255.255.0,1h
dhcp-option=3,10.77.0.1
dhcp-leasefile={leases}
{option}
"""
OPERATION = Path(__file__).parents[2] / "docs/operation.md"


def documented(kind: str, server: str) -> str:
    """The option as the operators' documentation has it, for a server."""
    fence = "```json\n" if kind == "kea" else "```\n"
    texts = OPERATION.read_text().split("## How a host finds its server")[1].split(fence)
    text = next(each.split("```")[0] for each in texts[1:] if "227" in each.split("```")[0])
    return text.replace("10.66.0.1", server)


@pytest.fixture
def lan(namespace: Callable[[str], str], tmp_path: Path) -> dict[str, Machine]:
    """A gateway that has DHCP, a port server that is not the gateway, and a host that knows nothing yet."""
    gateway, server, host = namespace("gateway"), namespace("server"), namespace("host")
    ip(gateway, "link add lan type bridge; addr add 10.77.0.1/24 dev lan; link set lan up")
    for name in (server, host):
        end = name.rpartition("-")[2]
        ip(gateway, f"link add {end} type veth peer name eth0 netns {name}")
        ip(gateway, f"link set {end} master lan up")
        ip(name, "link set eth0 up")
    ip(server, "addr add 10.77.0.2/24 dev eth0; route add default via 10.77.0.1")
    machines = {"gateway": Machine(gateway, "10.77.0.1"), "server": Machine(server, "10.77.0.2")}
    for machine in machines.values():
        path = tmp_path / f"{machine.address}.toml"
        path.write_text(
            f'roles = ["server"]\n[server]\nexternal_addresses = ["{EXTERNAL}"]\nlisten = "{machine.address}"\n'
        )
        machine.dnatctl("up", "--config", str(path))
    return machines | {"host": Machine(host, "10.77.0.50")}


@contextmanager
def serving(machine: Machine, *argv: str, ready: Callable[[], bool]) -> Iterator[None]:
    """A DHCP server in the machine's namespace."""
    with netns.popen(argv, machine.namespace, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: process.poll() is None and ready(), f"{argv[0]} is ready", 20)
            yield
        finally:
            process.kill()


def listens(machine: Machine) -> bool:
    return ":67 " in machine.run("ss", "-Hlun", "sport", "=", "67").stdout + machine.run("ss", "-Hl0").stdout


@contextmanager
def dnsmasq(machine: Machine, directory: Path, option: str) -> Iterator[None]:
    path = directory / "dnsmasq.conf"
    path.write_text(DNSMASQ.format(leases=directory / "dnsmasq.leases", option=option))
    with serving(machine, "dnsmasq", f"--conf-file={path}", ready=lambda: listens(machine)):
        yield


@contextmanager
def kea(machine: Machine, directory: Path, option: str) -> Iterator[None]:
    leases = directory / "kea.leases"
    configuration = json.loads("{" + option + "}") | {
        "interfaces-config": {"interfaces": ["lan"]},
        "lease-database": {"type": "memfile", "persist": True, "name": str(leases)},
        "subnet4": [
            {
                "subnet": "10.77.0.0/24",
                "pools": [{"pool": "10.77.0.50 - 10.77.0.60"}],
                "option-data": [{"name": "routers", "data": "10.77.0.1"}],
            }
        ],
    }
    path = directory / "kea.conf"
    path.write_text(json.dumps({"Dhcp4": configuration}))
    environment = {"KEA_PIDFILE_DIR": str(directory), "KEA_LOCKFILE_DIR": str(directory)}
    with serving(
        machine,
        *("env", *(f"{name}={value}" for name, value in environment.items())),
        *("kea-dhcp4", "-c", str(path)),
        ready=leases.exists,
    ):
        yield


@contextmanager
def dhclient(machine: Machine, directory: Path) -> Iterator[None]:
    """Debian's client with Debian's script, whose directory of hooks has ours in it; up to its first lease."""
    script = directory / "dhclient-script"
    hooks = directory / "hooks.d"
    hooks.mkdir(exist_ok=True)
    shutil.copy(HOOK, hooks / "dnat")
    text = Path("/sbin/dhclient-script").read_text()
    assert "/etc/dhcp/dhclient-enter-hooks.d" in text
    text = text.replace("/etc/resolv.conf", str(directory / "resolv.conf"))
    script.write_text(text.replace("/etc/dhcp/dhclient-enter-hooks.d", str(hooks)))
    script.chmod(0o755)
    # Nothing in the client's configuration: the option comes unasked and unknown.
    (directory / "dhclient.conf").write_text("timeout 20;\nretry 5;\n")
    files = ("-cf", "dhclient.conf", "-lf", "dhclient.leases", "-pf", "dhclient.pid", "-sf", "dhclient-script")
    arguments = [str(directory / each) if not each.startswith("-") else each for each in files]
    machine.run("dhclient", "-1", *arguments, "eth0")
    try:
        yield
    finally:
        machine.run("dhclient", "-r", *arguments, "eth0")


def status(machine: Machine) -> str:
    (line,) = json.loads(machine.dnatctl("status", "-o", "json").stdout)["summary"]
    return str(line)


@pytest.mark.parametrize(("kind", "serve"), [("dnsmasq", dnsmasq), ("kea", kea)], ids=["dnsmasq", "kea"])
def test_dhcp_names_the_server(
    lan: dict[str, Machine],
    tmp_path: Path,
    kind: str,
    serve: Callable[[Machine, Path, str], AbstractContextManager[None]],
) -> None:
    host = lan["host"]
    with serve(lan["gateway"], tmp_path, documented(kind, "10.77.0.2")):
        with dhclient(host, tmp_path):
            assert noted(host).exists()
            assert "default via 10.77.0.1" in host.run("ip", "route").stdout
            said = host.dnatctl("up").stdout
            assert "leased from 10.77.0.2 (named by DHCP)" in said
            assert "leased from 10.77.0.2 (named by DHCP)" in status(host)
            host.dnatctl("down")
            # The configuration has the first word.
            path = tmp_path / "dnat.toml"
            path.write_text('[host]\nserver = "10.77.0.1"\n')
            assert host.dnatctl("up", "--config", str(path)).stdout.rstrip().endswith("leased from 10.77.0.1")
            host.dnatctl("down")
        # A lease that was given back says nothing any more.
        assert not noted(host).exists()


def noted(machine: Machine) -> Path:
    return Path("/run/dnat/dhcp") / str(Path(f"/run/netns/{machine.namespace}").stat().st_ino) / "eth0"


def test_without_the_option_it_is_the_gateway(lan: dict[str, Machine], tmp_path: Path) -> None:
    """And so it is when the option is there and no address."""
    host = lan["host"]
    for option in ("", "dhcp-option-force=227,nonsense"):
        with dnsmasq(lan["gateway"], tmp_path, option), dhclient(host, tmp_path):
            assert host.dnatctl("up").stdout.rstrip().endswith("leased from 10.77.0.1")
            host.dnatctl("down")


@pytest.mark.parametrize(
    ("comes", "goes"),
    [
        (
            {"NM_DISPATCHER_ACTION": "pre-up", "DEVICE_IP_IFACE": "eth0", "DHCP4_PRIVATE_227": "0a:4d:00:02"},
            {"NM_DISPATCHER_ACTION": "down", "DEVICE_IFACE": "eth0"},
        ),
        (
            {"reason": "BOUND", "interface": "eth0", "new_dnat_server": "10.77.0.2"},
            {"reason": "STOP", "interface": "eth0"},
        ),
        (
            {"reason": "RENEW", "interface": "eth0", "new_unknown_227": "a:4d:0:2"},
            {"reason": "RENEW", "interface": "eth0"},
        ),
    ],
    ids=["NetworkManager", "dhcpcd", "dhclient"],
)
def test_what_the_hook_notes(namespace: Callable[[str], str], comes: dict[str, str], goes: dict[str, str]) -> None:
    """As NetworkManager runs it, and as the others read it into their scripts."""
    host = Machine(namespace("host"), "10.77.0.50")
    command = (str(HOOK),) if "NM_DISPATCHER_ACTION" in comes else ("sh", "-euc", f". {HOOK}; echo still there")
    said = host.run("env", *(f"{name}={value}" for name, value in comes.items()), *command).stdout
    assert parse(noted(host).read_text().strip()) == (IPv4Address("10.77.0.2"),)
    said += host.run("env", *(f"{name}={value}" for name, value in goes.items()), *command).stdout
    assert not noted(host).exists()
    assert "NM_DISPATCHER_ACTION" in comes or said.count("still there") == 2
