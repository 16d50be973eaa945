"""Real phones, real audio: the calls of the demo, and calls that go on while everything around them dies."""

from __future__ import annotations

import os
import signal
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nodes import Lab, Node, eventually
from scapy.layers.inet import IP, UDP
from scapy.utils import PcapReader

from dnat.lab import control
from dnat.lab.demo_calls import Plan, Round
from dnat.lab.demo_stage import perform, prepared

TALK = 6.0
"""Seconds of a call during which daemons are killed and started again."""


@pytest.mark.parametrize("lab", ["routed", "own"], indirect=True)
def test_every_call_of_the_demo_works(lab: Lab, tmp_path: Path) -> None:
    """The command that `make demo` runs; then the capture of the WAN link, read by somebody else's decoder."""
    prefix = lab.topology.prefix
    done = lab["ext"].run(control.DNATCTL, "lab", "demo", "--prefix", prefix, "--output", str(tmp_path), timeout=120)
    assert "All 5 calls worked" in done.stdout
    for picture in ("calls.svg", "call-1.svg", "call-4.svg"):
        assert ET.parse(tmp_path / picture).getroot().tag.endswith("svg")
    with PcapReader(str(tmp_path / "wan.pcap")) as packets:
        datagrams = [packet[IP] for packet in packets if IP in packet and UDP in packet]
    assert {datagram.src for datagram in datagrams} == {lab.external, lab.ext}
    payloads = [bytes(datagram[UDP].payload) for datagram in datagrams]
    sip = [payload for payload in payloads if b"SIP/2.0" in payload]
    assert any(payload.startswith(b"INVITE") for payload in sip)
    assert not [payload for payload in sip if b"10.66." in payload]
    assert sum(payload[:1] == b"\x80" for payload in payloads) > 1000, "RTP of three calls, both ways"


def _kill(node: Node) -> None:
    os.kill(node.pid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "plan", [Plan("phone1", "ext"), Plan("ext", "phone1", encrypted=True), Plan("phone1", "phone2")], ids=str
)
def test_a_call_outlives_the_daemons_around_it(routed_lab: Lab, tmp_path: Path, plan: Plan) -> None:
    """Router, server and host daemons are killed during a call and come back: not one RTP packet is lost."""
    router, phone = routed_lab["router"], routed_lab["phone1"]

    def kill_and_restart() -> None:
        before = sum(router.counter(name) for name in ("router_out", "router_in", "router_hairpin"))
        eventually(
            lambda: sum(router.counter(name) for name in ("router_out", "router_in", "router_hairpin")) > before + 100,
            "the parties of the call hear each other",
            seconds=20,
        )
        _kill(router)
        _kill(phone)
        time.sleep(0.5)
        for node in (router, phone):
            node.dnatctl("up")

    with ThreadPoolExecutor(1) as pool, prepared(routed_lab.topology, tmp_path) as stage:
        killing = pool.submit(kill_and_restart)
        result = perform(stage, tmp_path, lambda _: None, (Round(str(plan), "", (plan,)),), TALK)
        killing.result()
    assert result.problems == ()
    ((_, (call,)),) = result.rounds
    assert call.there is not None and call.back is not None
    assert min(call.there.sent, call.back.sent) > 0.9 * TALK * 50
