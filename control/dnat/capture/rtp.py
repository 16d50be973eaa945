"""Measuring RTP streams: loss, order, jitter, and whether the payload can be told from noise."""

from __future__ import annotations

import math
import struct
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv4Address

ENTROPY_SAMPLE = 65_536
"""Octets of payload that the entropy of a stream is judged by."""


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """Address and port."""

    address: IPv4Address
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class RtpStream:
    """One RTP stream, as seen at one place."""

    source: Endpoint
    destination: Endpoint
    ssrc: int
    payload_type: int
    """Of most of its packets."""
    codec: str
    """Encoding name and clock rate from the SDP or RFC 3551, ``PCMU/8000``."""
    packets: int
    """Different packets seen."""
    lost: int
    """Sequence numbers missing between the first and the last packet (RFC 3550, appendix A.3)."""
    reordered: int
    """Packets that came after one with a higher sequence number."""
    duplicates: int
    jitter: float
    """Interarrival jitter at the end, seconds (RFC 3550, section 6.4.1)."""
    first_at: float
    """Seconds since 1970."""
    last_at: float
    secure_profile: bool
    """Whether the SDP announced SRTP (profile RTP/SAVP or RTP/SAVPF)."""
    looks_encrypted: bool | None
    """Whether the payload looks like noise; None for very short streams and codecs whose own output does."""


STATIC_CODECS = {0: "PCMU/8000", 3: "GSM/8000", 8: "PCMA/8000", 9: "G722/8000", 18: "G729/8000"}
"""Payload types that need no rtpmap (RFC 3551, section 6)."""

PLAIN_CODECS = ("PCMU", "PCMA", "L16")
"""Codecs that do not compress, so that sound in clear never looks like noise."""


def is_rtp(payload: bytes) -> bool:
    """RTP version 2, and not RTCP on the same port (RFC 5761, section 4)."""
    return len(payload) >= 12 and payload[0] >> 6 == 2 and not 64 <= payload[1] & 0x7F <= 95


@dataclass(slots=True)
class RtpMeter:
    """Counts one stream, packet by packet."""

    source: Endpoint
    destination: Endpoint
    ssrc: int
    codecs: dict[int, str]
    """Payload type to ``NAME/RATE`` from the SDP."""
    secure_profile: bool
    _payload_types: Counter[int] = field(default_factory=Counter)
    _seen: set[int] = field(default_factory=set)
    _highest: int = -1
    _reordered: int = 0
    _duplicates: int = 0
    _jitter: float = 0.0
    _transit: float | None = None
    _first_at: float = 0.0
    _last_at: float = 0.0
    _octets: Counter[int] = field(default_factory=Counter)
    _octet_count: int = 0
    _payloads: set[bytes] = field(default_factory=set)

    def add(self, at: float, packet: bytes) -> None:
        """Take one packet (RTP header and payload) that was seen at ``at``."""
        sequence, timestamp = struct.unpack_from("!HI", packet, 2)
        if self._highest < 0:
            self._first_at = at
            extended = 0x10000 + sequence
        else:
            # The extended number nearest to the highest one so far.
            extended = self._highest + ((sequence - self._highest + 0x8000) & 0xFFFF) - 0x8000
        self._last_at = at
        if extended in self._seen:
            self._duplicates += 1
            return
        self._seen.add(extended)
        self._reordered += extended < self._highest
        self._highest = max(self._highest, extended)
        self._payload_types[packet[1] & 0x7F] += 1
        transit = at - timestamp / self._clock_rate(packet[1] & 0x7F)
        # A wrapped timestamp would look like a jump of hours.
        if self._transit is not None and abs(change := transit - self._transit) < 60:
            self._jitter += (abs(change) - self._jitter) / 16
        self._transit = transit
        payload = packet[12 + 4 * (packet[0] & 15) :]
        if self._octet_count < ENTROPY_SAMPLE:
            self._octets.update(payload)
            self._octet_count += len(payload)
            self._payloads.add(payload)

    def stream(self) -> RtpStream:
        """What was counted so far; at least one packet must have been added."""
        payload_type = self._payload_types.most_common(1)[0][0]
        codec = self._codec(payload_type)
        return RtpStream(
            source=self.source,
            destination=self.destination,
            ssrc=self.ssrc,
            payload_type=payload_type,
            codec=codec,
            packets=len(self._seen),
            lost=self._highest - min(self._seen) + 1 - len(self._seen),
            reordered=self._reordered,
            duplicates=self._duplicates,
            jitter=self._jitter,
            first_at=self._first_at,
            last_at=self._last_at,
            secure_profile=self.secure_profile,
            looks_encrypted=self._noise() if codec.startswith(PLAIN_CODECS) else None,
        )

    def _codec(self, payload_type: int) -> str:
        return self.codecs.get(payload_type) or STATIC_CODECS.get(payload_type) or f"type {payload_type}"

    def _clock_rate(self, payload_type: int) -> int:
        rate = self._codec(payload_type).partition("/")[2].partition("/")[0]
        return int(rate) if rate.isdigit() and int(rate) else 8000

    def _noise(self) -> bool | None:
        """Random octets have an entropy of 8 bits less a known bias; samples of sound stay far below."""
        total = self._octet_count
        if total < 1000:
            return None
        entropy = -sum(count / total * math.log2(count / total) for count in self._octets.values())
        return entropy > 8 - 400 / total
