"""The lines of ``dnatctl capture``."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from sip_scene import EXT, PHONE, Scene, sdp, sip

from dnat.capture import sniff
from dnat.capture.pap_layer import PAP, PAPHostId, PAPLease, PAPReason, PAPWant
from dnat.errors import UsageError


def line(packet: Packet) -> str | None:
    """Dissected anew, as from the wire; without the clock."""
    again = Ether(bytes(Ether() / packet))
    again.time = 0.5
    said = sniff.describe(again)
    if said is None:
        return None
    clock, text = said.split("  ", 1)
    assert clock.endswith(".500")
    return text


@pytest.mark.parametrize(
    ("pap", "expected"),
    [
        (
            PAP(type="REQUEST", attributes=[PAPHostId(), PAPWant(count=64)]),
            "PAP REQUEST · wants 64 ports, any ephemeral",
        ),
        (
            PAP(type="REQUEST", attributes=[PAPWant(count=1, first=5060, protocol=17, purpose=3)]),
            "PAP REQUEST · wants 1 port from 5060, udp explicit",
        ),
        (
            PAP(
                type="RESPONSE",
                attributes=[PAPLease(address=PHONE, first=20000, last=20063, lifetime=3600)],
            ),
            f"PAP RESPONSE · SUCCESS · {PHONE}:20000-20063 any ephemeral for 3600 s",
        ),
        (
            PAP(type="RESPONSE", result=32, attributes=[PAPReason(text="all ports are leased")]),
            "PAP RESPONSE · POOL_EXHAUSTED · all ports are leased",
        ),
    ],
)
def test_pap(pap: Packet, expected: str) -> None:
    packet = IP(src="10.66.0.11", dst="10.66.0.1") / UDP(sport=5728, dport=5727) / pap
    assert line(packet) == f"10.66.0.11:5728 → 10.66.0.1:5727  {expected}"


def test_noise_on_the_pap_port() -> None:
    packet = IP(src="10.66.0.11", dst="10.66.0.1") / UDP(sport=5728, dport=5727) / Raw(b"xx")
    assert line(packet) == "10.66.0.11:5728 → 10.66.0.1:5727  not PAP: 2 octets"


def test_sip() -> None:
    message = sip("INVITE sip:ext@203.0.113.2:5060 SIP/2.0", "1 INVITE", sdp=sdp(PHONE, 20002))
    packet = IP(src=PHONE, dst=EXT) / UDP(sport=20000, dport=5060) / Raw(message)
    assert line(packet) == (
        f"{PHONE}:20000 → {EXT}:5060  SIP INVITE sip:ext@203.0.113.2:5060"
        f"  (contact {PHONE}:20000 · audio to {PHONE}:20002 RTP/AVP)"
    )


def test_sip_that_is_cut_short_still_shows_its_first_line() -> None:
    packet = IP(src=PHONE, dst=EXT) / UDP(sport=20000, dport=5060) / Raw(b"SIP/2.0 200 OK\r\nVia: SI")
    assert line(packet) == f"{PHONE}:20000 → {EXT}:5060  SIP 200 OK"


def test_icmp() -> None:
    echo = IP(src=PHONE, dst=EXT) / ICMP(id=7, seq=3)
    assert line(echo) == f"{PHONE} → {EXT}  ICMP echo-request id 7 seq 3"
    inner = IPerror(src=PHONE, dst=EXT) / UDPerror(sport=20002, dport=40000)
    error = IP(src=EXT, dst=PHONE) / ICMP(type=3, code=3) / inner
    assert line(error) == (f"{EXT} → {PHONE}  ICMP dest-unreach port-unreachable about {PHONE}:20002 → {EXT}:40000")


@pytest.mark.parametrize(
    "packet",
    [
        IP(src=PHONE, dst=EXT) / UDP(sport=20002, dport=40000) / Raw(b"\x80\x00" + bytes(170)),
        IP(src=PHONE, dst=EXT) / TCP(sport=20002, dport=80),
        IP(src=PHONE, dst=EXT, frag=100, proto=17) / Raw(b"INVITE sip:a SIP/2.0\r\n"),
    ],
)
def test_the_rest_is_passed_over(packet: Packet) -> None:
    assert line(packet) is None
    assert sniff.describe(Ether() / ARP()) is None


def test_a_file_is_read(scene: Scene, tmp_path: Path) -> None:
    scene.sip(f"{PHONE}:20000", f"{EXT}:5060", sip("BYE sip:ext@h SIP/2.0", "2 BYE"))
    scene.rtp(f"{PHONE}:20002", f"{EXT}:40000", range(3))
    said: list[str] = []
    sniff.read(scene.write(tmp_path / "a.pcap"), said.append)
    assert len(said) == 1 and "SIP BYE" in said[0]


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.pcap cannot be read: No such file"):
        sniff.read(tmp_path / "missing.pcap", print)
