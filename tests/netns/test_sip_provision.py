"""``dnatctl provision``: the real phones start with what it wrote, and keep to the block that it leased."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from nodes import Lab
from sip_linphone import LinPhone
from sip_phones import SipPhone

from dnat.lab import control
from dnat.system import netns

BOB = 550
"""Hertz of linphone's voice."""


@pytest.mark.parametrize(
    ("transport", "encryption"),
    [("udp", "none"), ("tcp", "sdes"), ("tls", "sdes"), ("udp", "dtls")],
    ids=["udp", "tcp-sdes", "tls-sdes", "udp-dtls"],
)
def test_linphone_is_called_with_what_was_written(
    sip_lab: Lab, tmp_path: Path, transport: str, encryption: str
) -> None:
    ca = json.loads(sip_lab["sip"].dnatctl("sip", "status", "-o", "json").stdout)["certificate"]
    options = ("--transport", transport, "--encryption", encryption, "--ca", ca)
    with (
        SipPhone(sip_lab["phone1"], tmp_path / "alice", 440).provision("alice", "--encryption", encryption) as alice,
        LinPhone(sip_lab["phone2"], tmp_path / "bob", BOB).provision("bob", *options) as bob,
    ):
        alice.registered()
        bob.registered()
        known = json.loads(sip_lab["sip"].dnatctl("sip", "registrations", "-o", "json").stdout)
        assert any("linphone" in one["agent"].lower() for one in known)
        call_id = alice.call(f"sip:bob@{sip_lab.external}")
        alice.wait_for("CALL_RTPESTAB", 0, call_id)
        time.sleep(3.0)
        bob.hang_up()
        alice.wait_for("CALL_CLOSED", 0, call_id)
        alice.hears(BOB)
        bob.hears(alice.tone)


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
