"""`init`, `doctor` and `ping`: what a person does in the first hour, on machines that are well and on broken ones."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inside import ip, run
from nodes import Lab, Node, eventually

from dnat.lab.control import DNATCTL
from dnat.system import netns


def _findings(node: Node, code: int) -> dict[str, list[dict[str, str]]]:
    report: dict[str, Any] = json.loads(node.dnatctl("doctor", "-o", "json", code=code).stdout)
    assert report["ok"] == (code == 0)
    found: dict[str, list[dict[str, str]]] = {}
    for one in report["findings"]:
        found.setdefault(one["check"], []).append(one)
        assert one["advice"] or one["level"] == "ok", "whoever complains says what to do"
    return found


def test_a_healthy_host_and_router(lab: Lab) -> None:
    for name in ("phone1", "router"):
        found = _findings(lab[name], 0)
        assert {"kernel", "bcc", "programs", "interfaces", "routes", "arp", "mtu", "firewall", "clock"} <= found.keys()
        faults = [one for rows in found.values() for one in rows if one["level"] == "fail"]
        assert not faults
    assert "answers" in _findings(lab["phone1"], 0)["server"][0]["text"]


def test_nobody_else_than_root_is_told_what_only_root_can_see(lab: Lab) -> None:
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "dnatctl", "doctor", "-o", "json")
    done = lab["router"].run(*nobody)
    found = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    assert (found["firewall"]["level"], "sudo" in found["firewall"]["advice"], done.stderr) == ("warn", True, "")


def test_a_program_on_a_port_that_is_not_leased(lab: Lab) -> None:
    phone = lab["phone1"]
    with phone.socket(2, 7999):
        assert "7999/udp" in _findings(phone, 0)["ports"][0]["text"]
    assert "7999" not in _findings(phone, 0)["ports"][0]["text"]


def test_a_firewall_that_drops(lab: Lab) -> None:
    router = lab["router"]
    try:
        router.run(
            "nft", "add table ip strict; add chain ip strict f { type filter hook forward priority 0; policy drop; }"
        )
        (finding,) = _findings(router, 0)["firewall"]
        assert (finding["level"], "ip strict f" in finding["text"]) == ("warn", True)
    finally:
        router.run("nft", "delete table ip strict")
    assert _findings(router, 0)["firewall"][0]["level"] == "ok"


def test_a_host_without_cable_route_or_server(namespace: Callable[[str], str]) -> None:
    name = namespace("alone")

    def doctor() -> dict[str, dict[str, str]]:
        report = json.loads(_doctor(name))
        return {one["check"]: one for one in report["findings"]}

    found = doctor()
    assert "no default route" in found["interfaces"]["text"], "said once, not by each check that needs it"
    assert not {"routes", "arp", "mtu", "server"} & found.keys()
    ip(name, "link add eth0 type veth peer name far; addr add 10.9.0.2/24 dev eth0; link set eth0 up; link set far up")
    ip(name, "route add default via 10.9.0.1")
    found = doctor()
    assert found["programs"]["level"] == "ok", "the kernel takes them, although nothing is up"
    assert (found["arp"]["level"], found["server"]["level"]) == ("fail", "fail")
    assert not (Path("/run/dnat") / name / "journal.json").exists(), "doctor changes nothing"
    assert found["firewall"]["level"] == "ok"
    ip(name, "link set far down")
    run(name, "iptables-legacy", "-P", "INPUT", "DROP")
    found = doctor()
    assert "no link" in found["interfaces"]["text"]
    assert (found["firewall"]["level"], "iptables-legacy -S" in found["firewall"]["advice"]) == ("warn", True)


def _doctor(name: str) -> str:
    with netns.enter(name):
        done = subprocess.run(
            [DNATCTL, "doctor", "-o", "json"], capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_init_writes_what_up_understands_and_replaces_nothing_unasked(
    namespace: Callable[[str], str], tmp_path: Path
) -> None:
    name = namespace("fresh")
    ip(name, "link add eth0 type veth peer name far; addr add 10.9.0.2/24 dev eth0; link set eth0 up; link set far up")
    ip(name, "route add default via 10.9.0.1")
    target = tmp_path / "dnat.toml"
    target.write_text("# nothing but comments\n")
    run(name, DNATCTL, "init", "--yes", "--config", str(target))
    assert 'roles = ["host"]' in target.read_text()
    before = target.read_text()
    with netns.enter(name):
        refused = subprocess.run(
            [DNATCTL, "init", "--yes", "--role", "host", "--config", target],
            capture_output=True,
            text=True,
            check=False,
        )
        asked = subprocess.run(
            [DNATCTL, "init", "--config", target],
            input="host\n10.9.0.7\nn\n",
            capture_output=True,
            text=True,
            check=False,
        )
    assert (refused.returncode, asked.returncode) == (2, 2)
    assert "--force" in refused.stderr
    assert "Replace it?" in asked.stdout
    assert target.read_text() == before
    run(name, DNATCTL, "init", "--yes", "--force", "--server", "10.9.0.7", "--config", str(target))
    assert 'server = "10.9.0.7"' in target.read_text()


def test_init_asks_again_and_writes_nothing_before_the_last_answer(
    namespace: Callable[[str], str], tmp_path: Path
) -> None:
    name, target = namespace("asked"), tmp_path / "dnat.toml"
    for interface, address in (("eth0", "198.51.100.1/30"), ("eth1", "10.9.0.1/24")):
        ip(name, f"link add {interface} type veth peer name far{interface}; addr add {address} dev {interface}")
        ip(name, f"link set {interface} up; link set far{interface} up")
    ip(name, "route add default via 198.51.100.2")

    def init(answers: str, *options: str) -> subprocess.CompletedProcess[str]:
        argv = [DNATCTL, "init", "--config", str(target), *options]
        with netns.enter(name):
            return subprocess.run(argv, input=answers, capture_output=True, text=True, check=False)

    for answers, options, word in (
        ("", (), "nothing was written"),
        ("router\neth1\n", (), "nothing was written"),
        ("", ("--yes", "--role", "host", "--external", "198.51.100.1"), "--external is not for a host"),
        ("", ("--yes", "--server", "10.9.0.7"), "--server is not for a router"),
    ):
        refused = init(answers, *options)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert word in refused.stderr and not target.exists()
    # No role, no interface, the LAN's once more, no address.
    said = init("phone\n\neth9\neth1\neth1\neth0\n198.51.100\n198.51.100.1, 198.51.100.9\n")
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("Error: ") == 4 and 'Error: "198.51.100" is no IPv4 address' in said.stdout
    assert 'external_addresses = ["198.51.100.1", "198.51.100.9"]' in target.read_text()


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_ping_from_outside(lab: Lab, protocol: str) -> None:
    phone, ext = lab["phone1"], lab["ext"]
    port = phone.request("--ports", "1")["first"]
    target = f"{lab.external}:{port}"
    command = ("ping", target, "--protocol", protocol, "--count", "2", "-o", "json")
    with netns.enter(phone.namespace):
        answerer = subprocess.Popen(
            [DNATCTL, "ping", "--listen", str(port), "--seconds", "60"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )

    def answered() -> dict[str, Any] | None:
        said: dict[str, Any] = json.loads(ext.dnatctl(*command, code=None).stdout)
        return said if [one["outcome"] for one in said["probes"]] == ["answered", "answered"] else None

    try:
        said = eventually(answered, "the answerer is up", 20)
    finally:
        answerer.kill()
        answerer.communicate()
    assert said["probes"][0]["seen_as"].startswith(f"{lab.ext}:")
    # Nobody listens any more, but the host still answers for its port.
    said = json.loads(ext.dnatctl(*command).stdout)
    assert {one["outcome"] for one in said["probes"]} == {"refused"}
    phone.dnatctl("release", str(port))


def test_ping_of_a_port_that_nobody_owns(lab: Lab) -> None:
    said = lab["ext"].dnatctl("ping", f"{lab.external}:9", "--count", "1", "--timeout", "0.5", code=None)
    assert said.returncode == (0 if lab.topology.own_address else 1), "the router refuses for itself"
