"""``dnatctl provision``: the real phones start with what it wrote, and keep to the block that it leased."""

from __future__ import annotations

import array
import json
import math
import os
import subprocess
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nodes import Lab, Node, eventually
from sip_phones import SipPhone

from dnat.lab import control
from dnat.lab.tone import listen
from dnat.system import netns

BOB = 550
"""Hertz of linphone's voice."""


@contextmanager
def linphone(node: Node, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """linphonec with its written configuration; commands go to its standard input."""
    home = directory / "home"
    (home / ".local/share/linphone").mkdir(parents=True)
    with (directory / "log").open("w") as log:
        process = netns.popen(
            ["linphonec", "-c", str(directory / "linphonerc"), "-d", "3", "-l", str(directory / "debug")],
            node.namespace,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            env={**os.environ, "HOME": str(home)},
            cwd=directory,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()


def tell(process: subprocess.Popen[str], *commands: str) -> None:
    assert process.stdin is not None
    for command in commands:
        process.stdin.write(command + "\n")
        process.stdin.flush()


def voice(path: Path, tone: int) -> Path:
    """Ten seconds of a tone, hertz."""
    samples = array.array("h", (int(8000 * math.sin(math.tau * tone * n / 8000)) for n in range(80_000)))
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(samples.tobytes())
    return path


@pytest.mark.parametrize(
    ("transport", "encryption"),
    [("udp", "none"), ("tcp", "sdes"), ("tls", "sdes"), ("udp", "dtls")],
    ids=["udp", "tcp-sdes", "tls-sdes", "udp-dtls"],
)
def test_linphone_is_called_with_what_was_written(
    sip_lab: Lab, tmp_path: Path, transport: str, encryption: str
) -> None:
    node, directory = sip_lab["phone2"], tmp_path / "bob"
    ca = json.loads(sip_lab["sip"].dnatctl("sip", "status", "-o", "json").stdout)["certificate"]
    node.dnatctl(
        "provision", "linphone", "--user", "bob", "--password", "secret-bob", "--directory", str(directory),
        "--transport", transport, "--encryption", encryption, "--ca", ca,
    )  # fmt: skip
    with (
        SipPhone(sip_lab["phone1"], tmp_path / "alice", 440).provision("alice", "--encryption", encryption) as alice,
        linphone(node, directory) as bob,
    ):
        alice.registered()
        tell(
            bob,
            "soundcard use files",
            f"play {voice(directory / 'voice.wav', BOB)}",
            f"record {directory}/heard.wav",
            "autoanswer enable",
        )

        def registered() -> bool:
            found = json.loads(sip_lab["sip"].dnatctl("sip", "registrations", "-o", "json").stdout)
            return any("Linphone" in one["agent"] or "linphone" in one["agent"].lower() for one in found)

        eventually(registered, f"linphone registers: {(directory / 'log').read_text()[-2000:]}", 20)
        call_id = alice.call(f"sip:bob@{sip_lab.external}")
        alice.wait_for("CALL_RTPESTAB", 0, call_id)
        time.sleep(3.0)
        tell(bob, "terminate")
        alice.wait_for("CALL_CLOSED", 0, call_id)
        alice.hears(BOB)
        tell(bob, "unregister", "quit")
        bob.wait(10)
    heard = listen(directory / "heard.wav", alice.tone)
    assert heard.seconds > 1.5


def test_the_block_is_kept(sip_lab: Lab, tmp_path: Path) -> None:
    node = sip_lab["phone1"]
    command = ["provision", "linphone", "--user", "alice", "--directory", str(tmp_path), "-o", "json"]
    first = json.loads(node.dnatctl(*command, "--password", "one").stdout)
    again = json.loads(node.dnatctl(*command, "--password", "two").stdout)
    assert (again["first"], again["last"]) == (first["first"], first["last"])
    assert "passwd=two" in (tmp_path / "linphonerc").read_text()
    larger = json.loads(node.dnatctl(*command, "--password", "two", "--calls", "20").stdout)
    assert larger["last"] - larger["first"] + 1 == 42
    leases = [(one["first"], one["last"]) for one in node.show()["leases"]]
    assert (larger["first"], larger["last"]) in leases and (first["first"], first["last"]) not in leases
    assert oct((tmp_path / "linphonerc").stat().st_mode & 0o777) == "0o600"


def test_files_are_served_to_the_lan(sip_lab: Lab, tmp_path: Path) -> None:
    node = sip_lab["phone1"]
    command = [control.DNATCTL, "provision", "linphone", "--user", "alice", "--password", "x"]
    command += ["--directory", str(tmp_path), "--http", "8080"]
    server = netns.popen(command, node.namespace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        assert "serving" in server.stderr.readline()

        def fetch(name: str) -> int:
            with netns.enter(sip_lab["phone2"].namespace):
                try:
                    with urllib.request.urlopen(f"http://{node.address}:8080/{name}", timeout=5) as answer:
                        return len(answer.read())
                except urllib.error.HTTPError as error:
                    error.close()
                    return error.code

        mac = json.loads(node.run("ip", "-j", "link", "show", "eth0").stdout)[0]["address"].replace(":", "")
        assert fetch(f"{mac}.xml") == fetch("linphone.xml") == (tmp_path / "linphone.xml").stat().st_size
        assert [fetch(name) for name in ("lease.json", "../" * 5 + "etc/passwd", "", "x/linphonerc")] == [404] * 4
    finally:
        server.terminate()
        server.communicate(timeout=10)
