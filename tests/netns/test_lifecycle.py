"""``up``, ``down`` and ``status``, with real daemons: what they change, say, and put back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from inside import differences, ip, run, snapshot
from nodes import Lab, Node, eventually

from dnat.lab import control
from dnat.system import netns

UDP = socket.SOCK_DGRAM
ECHO = 7

END = {"down": lambda node: None, "killed": Node.kill}
"""What happens to a daemon before ``down``."""


def _echoes(node: Node, lab: Lab) -> bool:
    """Whether a single datagram to the outside comes back."""
    with node.socket(UDP) as sock:
        sock.sendto(b"?", (lab.ext, ECHO))
        try:
            return sock.recv(10) == b"?"
        except TimeoutError:
            return False


@pytest.mark.parametrize("name", ["phone1", "router"])
def test_up_twice_changes_nothing(routed_lab: Lab, name: str) -> None:
    node = routed_lab[name]
    pid, leases = node.pid(), node.leases()
    before = snapshot(node.namespace)
    said = node.dnatctl("up").stdout
    assert "already up" in said
    assert len(said.splitlines()) == 1
    assert node.pid() == pid
    assert node.leases() == leases
    assert differences(before, snapshot(node.namespace)) == []


@pytest.mark.parametrize("end", END)
@pytest.mark.parametrize("name", ["phone1", "router"])
def test_down_puts_everything_back_and_up_takes_it_up_again(lab: Lab, name: str, end: str) -> None:
    """``up`` says one line when the first packet is answered; the ports are those of before."""
    node = lab[name]
    before = [(lease["first"], lease["last"], lease["purpose"]) for lease in node.leases()]
    assert differences(lab.untouched[name], snapshot(node.namespace)) != []
    END[end](node)
    node.dnatctl("down")
    assert differences(lab.untouched[name], snapshot(node.namespace)) == []
    assert not node.runtime.exists()
    assert not (Path("/run/dnat/bpf") / node.namespace).exists(), "nothing stays pinned"

    said = node.dnatctl("up").stdout
    assert _echoes(lab["phone1"], lab)
    assert len(said.splitlines()) == 1
    assert lab.external in said
    if name != "router":
        for purpose in ("ephemeral", "translated"):
            assert f"{purpose} {node.ports(purpose)}" in said
    assert [(lease["first"], lease["last"], lease["purpose"]) for lease in node.leases()] == before


def test_what_others_set_up_before_stays(routed_lab: Lab) -> None:
    """Filters, tables and settings of somebody else are there during and after."""
    phone = routed_lab["sip"]
    phone.dnatctl("down")
    name = phone.namespace
    run(name, "tc", "qdisc", "add", "dev", "eth0", "clsact")
    filter_of_theirs = "tc filter add dev eth0 egress pref 7 protocol ip u32 match ip dport 9 0xffff flowid 1:1"
    run(name, *filter_of_theirs.split())
    run(name, "nft", "add table inet theirs")
    run(name, "sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 41000", "net.ipv4.conf.eth0.arp_announce=1")
    before = snapshot(name)
    try:
        phone.dnatctl("up")
        assert _echoes(phone, routed_lab)
        assert "theirs" in run(name, "nft", "list", "ruleset")
        assert "u32" in run(name, "tc", "filter", "show", "dev", "eth0", "egress")
        phone.dnatctl("down")
        assert differences(before, snapshot(name)) == []
    finally:
        phone.dnatctl("down")
        run(name, "tc", "qdisc", "del", "dev", "eth0", "clsact")
        run(name, "nft", "delete table inet theirs")
        ports = routed_lab.untouched["sip"]["/proc/sys/net/ipv4/ip_local_port_range"].strip()
        run(name, "sysctl", "-qw", f"net.ipv4.ip_local_port_range={ports}", "net.ipv4.conf.eth0.arp_announce=0")
        phone.dnatctl("up")


def test_down_without_up_is_harmless(namespace: Callable[[str], str]) -> None:
    name = namespace("idle")
    before = snapshot(name)
    assert "nothing was up" in run(name, control.DNATCTL, "down")
    assert differences(before, snapshot(name)) == []
    assert not (Path("/run/dnat") / name).exists()


def test_status_tells_up_killed_and_down_apart(routed_lab: Lab) -> None:
    phone = routed_lab["phone2"]
    said = phone.dnatctl("status").stdout
    assert "up as host" in said
    assert str(phone.pid()) in said
    document = json.loads(phone.dnatctl("status", "-o", "json").stdout)
    assert (document["roles"], document["pid"], document["instance"]) == (["host"], phone.pid(), phone.namespace)

    phone.kill()
    said = phone.dnatctl("status", code=5).stderr
    assert "data plane still works" in said
    assert "dnatctl up" in said and "dnatctl down" in said
    assert _echoes(phone, routed_lab), "as status says"

    phone.dnatctl("down")
    assert "not up here" in phone.dnatctl("status", code=5).stderr
    phone.dnatctl("up")


@contextmanager
def _supervised(node: Node, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """``up --foreground``, as a service manager starts it."""
    log = Path("/run/dnat-lab") / node.topology.prefix / "foreground.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as file:
        argv = [control.DNATCTL, "up", "--foreground"]
        process = netns.popen(argv, node.namespace, stdout=file, stderr=file, env=os.environ | environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_foreground_reports_to_its_service_manager_and_ends_on_sigterm(routed_lab: Lab, tmp_path: Path) -> None:
    """SIGTERM leaves the data plane, so that a service can be restarted during a call; ``down`` removes it."""
    phone = routed_lab["phone2"]
    leases = phone.leases()
    phone.kill()
    with socket.socket(socket.AF_UNIX, UDP) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        with _supervised(phone, NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
            assert b"READY=1" in manager.recv(1000).splitlines()
            assert phone.pid() == process.pid
            assert phone.leases() == leases
            already = phone.dnatctl("up", "--foreground", code=2)
            assert "already up" in already.stderr
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
    assert _echoes(phone, routed_lab)
    phone.dnatctl("status", code=5)
    phone.dnatctl("up")
    assert phone.leases() == leases


def test_down_ends_a_daemon_in_the_foreground(routed_lab: Lab) -> None:
    phone = routed_lab["phone2"]
    phone.dnatctl("down")
    with _supervised(phone) as process:
        eventually(lambda: phone.dnatctl("status", code=None).returncode == 0, "it is up", seconds=20)
        phone.dnatctl("down")
        assert process.wait(10) == 0
    assert differences(routed_lab.untouched["phone2"], snapshot(phone.namespace)) == []
    phone.dnatctl("up")


def test_down_ends_a_daemon_that_hangs(routed_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    phone = routed_lab["phone2"]
    pid = phone.pid()
    os.kill(pid, signal.SIGSTOP)
    impatient = "import dnat.cli.lifecycle as it; it.STOP_SECONDS = 0.5; from dnat.cli import main; main()"
    phone.run(sys.executable, "-c", impatient, "down")
    assert not Path(f"/proc/{pid}/cwd").exists()
    assert differences(routed_lab.untouched["phone2"], snapshot(phone.namespace)) == []
    phone.dnatctl("up")


def test_interrupting_up_undoes_it(routed_lab: Lab) -> None:
    """Ctrl-C at any moment: afterwards all is up, or nothing is."""
    phone = routed_lab["phone2"]
    phone.dnatctl("down")
    process = netns.popen([control.DNATCTL, "up"], phone.namespace, stdout=subprocess.DEVNULL)
    eventually((phone.runtime / "daemon.pid").exists, "the daemon has started", seconds=20)
    process.send_signal(signal.SIGINT)
    code = process.wait(20)
    if phone.dnatctl("status", code=None).returncode == 0:
        assert code == 0
    else:
        assert code == 130
        assert differences(routed_lab.untouched["phone2"], snapshot(phone.namespace)) == []
    phone.dnatctl("up")


@pytest.mark.parametrize("name", ["phone1", "router"])
def test_a_failed_up_leaves_nothing_behind(routed_lab: Lab, tmp_path: Path, name: str) -> None:
    """It fails as late as can be: everything else is set up when the port turns out to be taken."""
    node = routed_lab[name]
    node.dnatctl("down")
    with node.socket(UDP, {"phone1": 5728, "router": 5727}[name], node.address):
        refused = node.dnatctl("up", code=4)
    assert len(refused.stderr.splitlines()) == 1
    assert "cannot be opened" in refused.stderr
    assert differences(routed_lab.untouched[name], snapshot(node.namespace)) == []
    assert not (Path("/run/dnat/bpf") / node.namespace).exists()
    node.dnatctl("status", code=5)
    node.dnatctl("up")


def test_two_ups_at_once_are_as_good_as_one(routed_lab: Lab) -> None:
    phone = routed_lab["phone2"]
    phone.dnatctl("down")
    with ThreadPoolExecutor(2) as pool:
        said = [future.result().stdout for future in [pool.submit(phone.dnatctl, "up") for _ in range(2)]]
    assert all(line.count("\n") == 1 and routed_lab.external in line for line in said)
    assert _echoes(phone, routed_lab)


def test_instances_of_different_namespaces_do_not_meet(routed_lab: Lab, own_lab: Lab) -> None:
    """Two labs with the same LAN addresses at once: eight daemons, each with its own everything."""
    nodes = [lab[name] for lab in (routed_lab, own_lab) for name in ("router", "phone1", "phone2", "sip")]
    assert len({node.pid() for node in nodes}) == len(nodes)
    for node in nodes:
        assert node.show()["instance"] == node.namespace
        assert (Path("/run/dnat/bpf") / node.namespace).is_dir()
    assert _echoes(routed_lab["phone1"], routed_lab) and _echoes(own_lab["phone1"], own_lab)


def test_a_namespace_made_anew_is_not_taken_for_the_former(namespace: Callable[[str], str], prefix: str) -> None:
    """What an earlier namespace of the same name left in /run is not undone in the new one."""
    name = namespace("again")
    run(name, *f"{sys.executable} -c".split(), _CHANGE_A_SYSCTL)
    journal = Path("/run/dnat") / name / "journal.json"
    assert journal.exists()
    netns.delete(name)
    name = namespace("again")
    ip(name, "link set lo up")
    before = snapshot(name)
    run(name, control.DNATCTL, "down")
    assert differences(before, snapshot(name)) == []
    assert not journal.exists()


_CHANGE_A_SYSCTL = """
from dnat.instance import Instance
from dnat.system import sysctl
from dnat.system.journal import Journal
sysctl.ensure(Journal(Instance.current().journal), "net/ipv4/ip_default_ttl", "33")
"""
