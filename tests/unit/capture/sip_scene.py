"""Calls made of scapy packets: what the tests of reading and drawing have in common."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

PHONE, EXT = "198.51.100.1", "203.0.113.2"
START = 1_700_000_000.0


@dataclass
class Scene:
    """Packets of a capture, in order; each method adds some."""

    packets: list[Packet] = field(default_factory=list)
    clock: float = START

    def udp(self, source: str, destination: str, payload: bytes, after: float = 0.001) -> Packet:
        """Addresses as ``ADDRESS:PORT``."""
        self.clock += after
        (src, sport), (dst, dport) = source.split(":"), destination.split(":")
        packet = Ether() / IP(src=src, dst=dst) / UDP(sport=int(sport), dport=int(dport)) / Raw(payload)
        packet.time = self.clock
        self.packets.append(packet)
        return packet

    def sip(self, source: str, destination: str, message: bytes) -> None:
        self.udp(source, destination, message)

    def rtp(
        self,
        source: str,
        destination: str,
        sequences: Sequence[int],
        *,
        ssrc: int = 1,
        noise: bool = False,
        interval: float = 0.02,
    ) -> None:
        """One packet of 20 ms G.711 for each sequence number."""
        rng = random.Random(ssrc)
        for sequence in sequences:
            header = bytes([0x80, 0]) + (sequence & 0xFFFF).to_bytes(2) + (160 * sequence & 0xFFFFFFFF).to_bytes(4)
            sound = bytes(int(128 + 100 * math.sin(math.tau * (n + 160 * sequence) / 20)) for n in range(160))
            payload = rng.randbytes(170) if noise else sound
            self.udp(source, destination, header + ssrc.to_bytes(4) + payload, after=interval)

    def write(self, path: Path, packets: Sequence[Packet] | None = None) -> Path:
        wrpcap(str(path), list(packets or self.packets))
        return path


def sip(
    start: str,
    cseq: str,
    *,
    contact: str = f"{PHONE}:20000",
    via: str = f"{PHONE}:20000",
    sdp: str | None = None,
) -> bytes:
    """A SIP message as baresip would write it."""
    body = sdp or ""
    lines = [
        start,
        f"Via: SIP/2.0/UDP {via};branch=z9hG4bKa399;rport",
        f"Contact: <sip:phone1-0x56@{contact}>",
        "To: <sip:ext@203.0.113.2:5060>",
        f"From: <sip:phone1@{PHONE}:20000>;tag=e66a",
        "Call-ID: c2d99f8e742aac09",
        f"CSeq: {cseq}",
        "User-Agent: baresip v1.0.0 (x86_64/linux)",
    ]
    if sdp:
        lines.append("Content-Type: application/sdp")
    lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def sdp(address: str, port: int, profile: str = "RTP/AVP") -> str:
    lines = ["v=0", f"o=- 1 1 IN IP4 {address}", "s=-", f"c=IN IP4 {address}", "t=0 0"]
    lines += [f"m=audio {port} {profile} 0 101", "a=rtpmap:0 PCMU/8000", "a=rtpmap:101 telephone-event/8000"]
    return "\r\n".join(lines) + "\r\n"


def add_call(scene: Scene, *, profile: str = "RTP/AVP", noise: bool = False, packets: int = 100) -> None:
    """phone1 (198.51.100.1:20000, RTP 20002) calls ext (203.0.113.2:5060, RTP 40000) and hangs up."""
    phone, ext = f"{PHONE}:20000", f"{EXT}:5060"
    scene.sip(phone, ext, sip("INVITE sip:ext@203.0.113.2:5060 SIP/2.0", "7 INVITE", sdp=sdp(PHONE, 20002, profile)))
    scene.sip(ext, phone, sip("SIP/2.0 180 Ringing", "7 INVITE", contact=ext))
    scene.sip(ext, phone, sip("SIP/2.0 200 Answering", "7 INVITE", contact=ext, sdp=sdp(EXT, 40000, profile)))
    scene.sip(phone, ext, sip("ACK sip:ext@203.0.113.2:5060 SIP/2.0", "7 ACK"))
    scene.rtp(f"{PHONE}:20002", f"{EXT}:40000", range(packets), ssrc=1, noise=noise)
    scene.rtp(f"{EXT}:40000", f"{PHONE}:20002", range(packets), ssrc=2, noise=noise)
    scene.sip(phone, ext, sip("BYE sip:ext@203.0.113.2:5060 SIP/2.0", "8 BYE"))
    scene.sip(ext, phone, sip("SIP/2.0 200 OK", "8 BYE", contact=ext))
