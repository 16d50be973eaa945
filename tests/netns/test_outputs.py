"""Commands whose output, input or user is not what it should be: one sentence, an exit code, never a traceback."""

from __future__ import annotations

import select
import signal
import subprocess
from pathlib import Path

import pytest
from nodes import Lab, eventually

from dnat.lab import control
from dnat.system import netns

USAGE, PLATFORM, INTERRUPTED = 2, 4, 130

COMMANDS = ("show", "show -o json", "show --watch 0.1", "status", "doctor", "metrics", "--help", "show --help")
"""Of a host; of the router those too that only a server has."""
OF_A_SERVER = ("history", "history -o csv", "history -o json", "key list", "show owners")

REFUSED = {
    "phone1": {
        "request --port 5-1": "5060 or 20000-20009",
        "request --port ''": "5060 or 20000-20009",
        "release 99999999999999999999": "5060 or 20000-20009",
        "show leases --filter port=abc": "port=5060",
        "show leases --sort nothing": "expires_in",
        "show leases --sort -": "expires_in",
        "show --count 2": "--watch",
        "whois 198.51.100.1:10000": 'the role "server"',
        "drain": 'the role "server"',
        "key install /bin/true": "dnat-key-1:",
        "reload --config /etc": "/etc cannot be read: Is a directory",
        "reload --config /bin/true": "not text in UTF-8",
        "capture -r /etc": "/etc cannot be read: Is a directory",
        "capture -r /bin/true": "no capture file",
        "provision baresip --user a/b --password x": "no user",
        "provision baresip --user alice": "DNAT_SIP_PASSWORD",
        "provision baresip --user alice --password x --server x:99999": "no SIP server",
        "sip users add alice": "no SIP server",
    },
    "router": {
        "invalidate 0": "5060 or 20000-20009",
        "invalidate x": "5060 or 20000-20009",
        "invalidate --host x": "198.51.100.1",
        "drain x": "198.51.100.1",
        "drain 198.51.100.1": "no address would be left",
        "drain 192.0.2.1": "no external address of this server",
        "whois 198.51.100.1": "198.51.100.1:40012",
        "whois 198.51.100.1:10000 --at 0001-01-01T00:00+14:00": "no time",
        "whois 198.51.100.1:10000 --at 2026-11-22T10:00+99:00": "no time",
        "history --since yesterday": "no time",
        "key revoke nobody": "dnatctl key list",
        "map udp 7": 'leased by a "host"',
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(routed_lab: Lab, name: str) -> None:
    for arguments, word in REFUSED[name].items():
        done = routed_lab[name].run("sh", "-c", f"exec dnatctl {arguments} < /dev/null", code=USAGE)
        assert done.stdout == "", arguments
        assert len(done.stderr.splitlines()) == 1 and word in done.stderr, f"{arguments}: {done.stderr}"


def test_places_that_cannot_be_written(routed_lab: Lab, tmp_path: Path) -> None:
    phone = routed_lab["phone1"]
    before = phone.leases()
    (directory := tmp_path / "directory").mkdir()
    (file := tmp_path / "file").touch()
    for arguments in (
        "provision baresip --user alice --password x --directory /proc/there",
        f"provision baresip --user alice --password x --directory {file}",
        "init --yes --config /proc/there",
        f"init --yes --config {directory} --force",
    ):
        done = phone.dnatctl(*arguments.split(), code=PLATFORM)
        assert len(done.stderr.splitlines()) == 1 and "sudo" not in done.stderr, done.stderr
    assert phone.leases() == before, "nothing was leased for a phone that cannot be written down"
    assert sorted(tmp_path.iterdir()) == [directory, file]


@pytest.mark.parametrize("name", ["phone1", "router"])
def test_outputs(routed_lab: Lab, name: str) -> None:
    """A disk that is full is an error; nobody who reads, or a reader who has enough, is none."""
    node = routed_lab[name]
    for command in (*COMMANDS, *(OF_A_SERVER if name == "router" else ())):
        full = node.run("sh", "-c", f"exec dnatctl {command} > /dev/full", code=PLATFORM)
        assert full.stderr == "dnatctl: the output cannot be written: No space left on device\n", command
        again = " --count 1" if "--watch" in command else ""
        closed = node.run("sh", "-c", f"exec dnatctl {command}{again} >&-")
        assert closed.stderr == "", command
        first = node.run("sh", "-c", f"dnatctl {command} | head -1")
        assert (len(first.stdout.splitlines()), first.stderr) == (1, ""), command
        if again:
            ended = f"dnatctl {command} | head -1; exit ${{PIPESTATUS[0]}}"
            assert node.run("bash", "-c", ended, code=141).stderr == "", command
        silent = node.run("sh", "-c", f"exec dnatctl {command}{again} >&- 2>&-")
        assert silent.stderr == "", command


def test_a_terminal_without_our_marks(routed_lab: Lab) -> None:
    done = routed_lab["phone1"].run("sh", "-c", "PYTHONIOENCODING=latin-1 exec dnatctl doctor", text=False, code=None)
    assert done.stderr == b"" and b"? kernel" in done.stdout


@pytest.mark.parametrize("command", ["show --watch 0.1", "watch", "capture -i eth0", "ping --listen 7000"])
def test_interrupts(routed_lab: Lab, command: str) -> None:
    """Ctrl-C ends what goes on for ever, without a word."""
    phone = routed_lab["phone1"]
    argv = [control.DNATCTL, *command.split()]
    process = netns.popen(argv, phone.namespace, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # `watch` says nothing until something happens.
    stream = process.stdout if command.startswith(("show", "watch")) else process.stderr
    assert stream is not None
    if command == "watch":

        def heard() -> bool:
            phone.dnatctl("release", str(phone.request()["first"]))
            return bool(select.select([stream], [], [], 0.5)[0])

        eventually(heard, "it tells of a lease", 20)
    said = stream.readline()
    assert said
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert process.returncode in (0, INTERRUPTED), errors
    assert b"Traceback" not in rest + errors + said and b"internal" not in errors
