"""Real phones, real audio: the calls of the demo."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from nodes import Lab
from scapy.layers.inet import IP, UDP
from scapy.utils import PcapReader

from dnat.lab import control


@pytest.mark.parametrize("lab", ["routed", "own"], indirect=True)
def test_every_call_of_the_demo_works(lab: Lab, tmp_path: Path) -> None:
    """The command that `make demo` runs; then the capture of the WAN link, read by somebody else's decoder."""
    prefix = lab.topology.prefix
    others, former = [tmp_path / "mine.pcap", tmp_path / "phones/mine"], [tmp_path / "call-9.svg"]
    (tmp_path / "phones").mkdir()
    for path in (*others, *former):
        path.touch()
    done = lab["ext"].run(control.DNATCTL, "lab", "demo", "--prefix", prefix, "--output", str(tmp_path), timeout=120)
    assert "All 5 calls worked" in done.stdout
    assert all(path.exists() for path in others) and not any(path.exists() for path in former)
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
