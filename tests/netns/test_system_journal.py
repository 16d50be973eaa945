"""The journal: durable before the change, first value wins, what cannot be undone is said and kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from inside import differences, ip, run, snapshot

from dnat.errors import PlatformError
from dnat.system import host, local_ports, netns, rtnetlink, sysctl
from dnat.system.journal import Entry, Journal
from dnat.system.undo import HANDLERS, PATH_KIND
from dnat.types import PortRange

CHANGE = """
import sys
from ipaddress import IPv4Address
from pathlib import Path
from dnat.system.host import ensure_host_network
from dnat.system.journal import Journal
from dnat.types import PortRange
journal = Journal(Path(sys.argv[1]))
for first in range(20000, 60000, 64):
    ports = PortRange(first, first + 63)
    address = IPv4Address("198.51.100.1") + first // 64 % 2
    ensure_host_network(journal, "eth0", address, IPv4Address("10.66.0.1"), ports)
    print(first, flush=True)
"""


@pytest.fixture
def machine(namespace: Callable[[str], str]) -> str:
    name = namespace("machine")
    ip(name, "link add eth0 type bridge; addr add 10.66.0.11/24 dev eth0; link set eth0 up")
    ip(name, "route add default via 10.66.0.1 proto dhcp src 10.66.0.11")
    return name


@pytest.mark.parametrize("moment", [0.0, 0.003, 0.007, 0.011, 0.02])
def test_undo_after_a_kill_at_any_moment(machine: str, tmp_path: Path, moment: float) -> None:
    taken = snapshot(machine)
    path = tmp_path / "journal.json"
    with netns.popen(
        [sys.executable, "-c", CHANGE, str(path)], machine, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as changing:
        deadline = time.monotonic() + 10
        while not path.exists():
            assert changing.poll() is None and time.monotonic() < deadline
            time.sleep(0.0005)
        time.sleep(moment)
        changing.send_signal(signal.SIGKILL)
    assert changing.returncode == -signal.SIGKILL
    with netns.enter(machine):
        assert Journal(path).undo(HANDLERS) == []
    assert differences(taken, snapshot(machine)) == []


def test_every_change_is_on_disk_before_it_is_made(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step that fails leaves a journal from which all earlier steps, and it itself, are undone."""
    taken = snapshot(machine)
    steps = [(local_ports, "ensure"), (host, "_ensure_address"), (rtnetlink, "request")]
    for module, name in steps:
        path = tmp_path / f"{name}.json"
        with monkeypatch.context() as broken, netns.enter(machine):

            def fail(*_: object, **__: object) -> None:
                raise PlatformError("no more")

            broken.setattr(module, name, fail)
            with pytest.raises(PlatformError, match="no more"):
                host.ensure_host_network(
                    Journal(path),
                    "eth0",
                    IPv4Address("198.51.100.1"),
                    IPv4Address("10.66.0.1"),
                    PortRange(20000, 20063),
                )
        with netns.enter(machine):
            assert Journal(path).entries
            assert Journal(path).undo(HANDLERS) == []
        assert differences(taken, snapshot(machine)) == []


def test_the_first_value_wins(machine: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    with netns.enter(machine):
        for value in (70, 71, 72):
            sysctl.ensure(Journal(path), "net/ipv4/ip_default_ttl", value)
        assert [entry.facts for entry in Journal(path).entries] == [{"old": "64"}]
        assert Journal(path).undo(HANDLERS) == []
        assert sysctl.read("net/ipv4/ip_default_ttl") == "64"


def test_what_cannot_be_undone_is_said_and_kept(machine: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    undone: list[str] = []

    def stubborn(entry: Entry) -> None:
        raise OSError(16, "Device or resource busy")

    def remember(entry: Entry) -> None:
        undone.append(entry.subject)

    with netns.enter(machine):
        journal = Journal(path)
        for subject in ("one", "two", "three"):
            assert journal.add("attachment", subject, direction="ingress")
        assert not journal.add("attachment", "one", direction="egress")
        journal.add("unknown", "riddle")
        journal.add("stubborn", "mule")
        problems = journal.undo({"attachment": remember, "stubborn": stubborn})
        assert undone == ["three", "two", "one"]
        assert len(problems) == 2
        assert "mule: " in problems[0] and "busy" in problems[0]
        assert "riddle" in problems[1]
        assert [entry.subject for entry in Journal(path).entries] == ["riddle", "mule"]
        assert Journal(path).undo({"unknown": remember, "stubborn": remember}) == []
    assert not path.exists()


def test_the_journal_of_a_former_namespace_of_the_same_name_counts_for_nothing(
    namespace: Callable[[str], str], tmp_path: Path
) -> None:
    path = tmp_path / "journal.json"
    name = namespace("node")
    with netns.enter(name):
        sysctl.ensure(Journal(path), "net/ipv4/ip_default_ttl", 70)
    netns.delete(name)
    netns.create(name)
    run(name, "sysctl", "-qw", "net.ipv4.ip_default_ttl=99")
    with netns.enter(name):
        assert Journal(path).entries == ()
        assert Journal(path).undo(HANDLERS) == []
        assert sysctl.read("net/ipv4/ip_default_ttl") == "99"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 9}', '{"format": 1, "namespace": 1}'])
def test_a_journal_that_makes_no_sense_is_not_guessed_at(tmp_path: Path, content: str) -> None:
    path = tmp_path / "journal.json"
    path.write_text(content)
    if content.endswith('"namespace": 1}'):
        Journal(path).add("sysctl", "x", old="1")
        content = json.dumps({**json.loads(path.read_text()), "entries": [{"kind": 1}]})
        path.write_text(content)
    with pytest.raises(PlatformError, match=r"journal\.json cannot be understood"):
        Journal(path)


def test_only_paths_of_dnat_are_removed(tmp_path: Path, prefix: str) -> None:
    ours = Path("/run/dnat") / prefix
    (ours / "deep").mkdir(parents=True)
    (ours / "deep/file").touch()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    journal = Journal(tmp_path / "journal.json")
    for path in (ours, ours / "deep/file", foreign, Path(f"/run/dnat/../../{foreign}"), Path("/run/dnat")):
        journal.add(PATH_KIND, str(path))
    problems = journal.undo(HANDLERS)
    assert len(problems) == 3
    assert not ours.exists()
    assert foreign.exists() and Path("/run/dnat").exists()


def test_nothing_is_changed_when_the_journal_cannot_be_written(machine: str, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with netns.enter(machine), pytest.raises(PlatformError, match="so nothing was changed"):
        sysctl.ensure(Journal(blocked / "journal.json"), "net/ipv4/ip_default_ttl", 70)
    with netns.enter(machine):
        assert sysctl.read("net/ipv4/ip_default_ttl") == "64"
