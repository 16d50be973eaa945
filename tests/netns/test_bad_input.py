"""What cannot work ends with one sentence that says what to do, an exit code, and nothing changed."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from inside import differences, ip, run, snapshot
from nodes import Lab, Machine
from small import EXTERNAL, Small

from dnat.lab import control

USAGE, PEER, PLATFORM = 2, 3, 4

CONFIGURATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a typo in a key": ("[host]\nephemeral_port = 9", ("host.ephemeral_port", '"ephemeral_ports"', "translated_ports")),
    "a typo in a table": ("[hots]\nserver = '10.77.0.1'", ("hots", '"host"', "router")),
    "a typo in a role": ('roles = ["hosts"]', ("roles", "host, server, router")),
    "a word for a number": ('[host]\nephemeral_ports = "many"', ("host.ephemeral_ports", "1 to 4096")),
    "a number out of bounds": ("[server]\nlifetime = 5", ("server.lifetime", "60 to 86400")),
    "a word for a table": ('host = "phone"', ("host", "[host]")),
    "a number for a role": ("roles = [1]", ("roles", "host, server, router")),
    "no list": ('roles = ["server"]\n[server]\nexternal_addresses = "198.51.100.1"', ("external_addresses", "list")),
    "no address": ('[host]\nserver = "router"', ("host.server", '"router"', "192.0.2.1")),
    "no range": ('[server]\nports = ["9-8"]', ("server.ports", '"9-8"', "10000-59999")),
    "no network": ('[server]\nnetworks = ["10.0.0.1/8"]', ("server.networks", '"10.0.0.1/8"', "10.66.0.0/24")),
    "a server without addresses": ('roles = ["server"]', ("server.external_addresses", "IPv4 address")),
    "a router without interfaces": (
        'roles = ["server", "router"]\n[server]\nexternal_addresses = ["198.51.100.1"]',
        ("router.lan", "interface"),
    ),
    "a router without a server": ('roles = ["router"]\n[router]\nlan = "a"\nwan = "b"', ("roles", '"server"')),
    "no TOML": ("roles == 1", ("not valid TOML", "line")),
}


def _refused(machine: Machine, *argv: str, code: int) -> str:
    """What a command says that must fail: one sentence, no traceback, no change. Returns it."""
    before = snapshot(machine.namespace)
    said = machine.dnatctl(*argv, code=code)
    assert said.stdout == ""
    assert len(said.stderr.splitlines()) == 1, said.stderr
    assert "Traceback" not in said.stderr and "internal error" not in said.stderr
    assert differences(before, snapshot(machine.namespace)) == []
    assert not (Path("/run/dnat/bpf") / machine.namespace).exists()
    machine.dnatctl("status", code=5)
    return said.stderr


def test_configurations(small: Small, tmp_path: Path) -> None:
    """Each message names the file, the key, and what is allowed there."""
    path = tmp_path / "dnat.toml"
    for case, (text, expected) in CONFIGURATIONS.items():
        path.write_text(text)
        said = small.host.dnatctl("up", "--config", str(path), code=USAGE).stderr
        missing = [word for word in (str(path), *expected) if word not in said]
        assert not missing, f"{case}: {missing} in: {said}"
    assert not small.host.runtime.exists(), "nothing was started"


def test_configuration_files_that_cannot_be_read(small: Small, tmp_path: Path) -> None:
    (tmp_path / "latin1.toml").write_bytes("# Größe".encode("latin-1"))
    for name in ("nowhere.toml", ".", "latin1.toml"):
        assert str(tmp_path / name) in _refused(small.host, "up", "--config", str(tmp_path / name), code=USAGE)


NAMES = {
    "host": '[host]\ninterface = "wlan9"',
    "router": f'roles = ["server", "router"]\n[server]\nexternal_addresses = ["{EXTERNAL}"]\n'
    '[router]\nlan = "wlan9"\nwan = "eth0"',
    "router's outside": f'roles = ["server", "router"]\n[server]\nexternal_addresses = ["{EXTERNAL}"]\n'
    '[router]\nlan = "eth0"\nwan = "wlan9"',
}


@pytest.mark.parametrize("role", NAMES)
def test_an_interface_that_is_not_there(small: Small, tmp_path: Path, role: str) -> None:
    (tmp_path / "dnat.toml").write_text(NAMES[role])
    said = _refused(small.host, "up", "--config", str(tmp_path / "dnat.toml"), code=PLATFORM)
    assert "wlan9" in said and "eth0" in said, "names what there is"


def test_a_server_address_of_another_machine(small: Small) -> None:
    path = small.configure().replace("server.toml", "other.toml")
    Path(path).write_text(small.configuration.read_text().replace("10.77.0.1", "10.77.0.7"))
    said = _refused(small.server, "up", "--config", path, code=PLATFORM)
    assert "server.listen" in said and "10.77.0.7" in said


def test_a_host_without_a_network(small: Small) -> None:
    ip(small.host.namespace, "route del default")
    assert "default route" in _refused(small.host, "up", code=PLATFORM)
    ip(small.host.namespace, "route add default via 10.77.0.1; link set lo down")
    small.serve()
    assert "ip link set lo up" in _refused(small.host, "up", code=PLATFORM)
    assert small.server.leases() == [], "what had been leased is given back"


def test_no_server_at_the_gateway(small: Small) -> None:
    """Refused after the agent's repeats, some 9 s (docs/pap.md, section 5), with what to do about it."""
    started = time.monotonic()
    said = _refused(small.host, "up", code=PEER)
    assert time.monotonic() - started < 20
    assert "10.77.0.1" in said and '"server"' in said and "host.server" in said
    small.serve()
    small.host.dnatctl("up")


def test_the_pool_is_exhausted(small: Small) -> None:
    """A hundred ports: the first host gets what it wants, the next one cannot come up and keeps nothing."""
    small.serve('ports = ["20000-20099"]\nhold_down = 0')
    small.host.dnatctl("up")
    said = _refused(small.other, "up", code=PEER)
    assert "refused" in said and "server.ports" in said
    assert {lease["host"] for lease in small.server.leases()} == {small.host.address}

    # The last four: fewer than asked for, then none at all.
    said = small.host.dnatctl("request", "--ports", "8", "--protocol", "udp").stdout
    assert "8 were asked for" in said
    refused = small.host.dnatctl("request", "--ports", "8", "--protocol", "udp", code=PEER).stderr
    assert "server.ports" in refused


def test_a_port_of_ours_that_is_in_use(small: Small) -> None:
    with small.host.socket(socket.SOCK_DGRAM, 5728, small.host.address):
        said = _refused(small.host, "up", code=PLATFORM)
    assert "5728" in said and "another program" in said


def test_the_address_to_share_is_the_hosts_own(small: Small) -> None:
    small.serve()
    ip(small.host.namespace, f"link add other type veth peer name far; addr add {EXTERNAL}/32 dev other")
    said = _refused(small.host, "up", code=PLATFORM)
    assert EXTERNAL in said


def test_no_root(small: Small) -> None:
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "dnatctl")
    for command in (("up",), ("down",), ("up", "--foreground"), ("capture", "-i", "lo")):
        said = small.host.run(*nobody, *command, code=PLATFORM)
        assert "root" in said.stderr
        assert len(said.stderr.splitlines()) <= 2


def test_nothing_runs_here(small: Small) -> None:
    for command in (("show",), ("request",), ("release", "5060"), ("status",)):
        assert "sudo dnatctl up" in small.host.dnatctl(*command, code=5).stderr


def test_commands_and_options_that_do_not_exist(small: Small) -> None:
    for command in (("upp",), ("up", "--colour"), ("show", "everything"), ("show", "-o", "xml"), ("lab", "start")):
        said = small.host.dnatctl(*command, code=USAGE).stderr
        assert "Error: " in said and "Traceback" not in said


def test_lab_commands(routed_lab: Lab) -> None:
    prefix = ("--prefix", routed_lab.topology.prefix)
    lab = (control.DNATCTL, "lab")
    ext = routed_lab["ext"]
    said = ext.run(*lab, "exec", *prefix, "phone7", "true", code=USAGE).stderr
    assert "phone7" in said and "phone1, phone2, sip" in said
    said = ext.run(*lab, "exec", *prefix, "phone1", "no-such-program", code=USAGE).stderr
    assert "no-such-program" in said
    said = ext.run(*lab, "up", *prefix, "--phones", "3", code=USAGE).stderr
    assert "2 phones" in said and "take it down first" in said
    for command in (("status",), ("exec", "phone1", "true")):
        said = ext.run(*lab, command[0], "--prefix", "nolab", *command[1:], code=USAGE).stderr
        assert "nolab" in said and "lab up" in said
    said = ext.run(*lab, "up", "--prefix", "No Lab", code=USAGE).stderr
    assert "lower-case" in said
    assert "no lab called nolab" in ext.run(*lab, "down", "--prefix", "nolab").stdout
    assert run(ext.namespace, *lab, "exec", *prefix, "phone1", "--", "hostname") != ""
