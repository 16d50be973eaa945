"""Calls in a capture: SIP messages, RTP streams that their SDP announces, and strangers among addresses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path

from sipmessage import Message, Request

from dnat.capture.frames import UDP, Packet, read_packets
from dnat.capture.rtp import Endpoint, RtpMeter, RtpStream, is_rtp
from dnat.types import PortRange

SIP_START = re.compile(rb"SIP/2\.0 [1-6]\d\d |[A-Z]+ \S+ SIP/2\.0\r\n")
ADDRESS = re.compile(r"(?<![\w.])(\d{1,3}(?:\.\d{1,3}){3})(?!\.?\w)(?::(\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class Media:
    """One ``m=`` line of an SDP (RFC 8866) with the address it is for."""

    kind: str
    """``audio``, ``video``…"""
    endpoint: Endpoint
    """Where the writer wants to receive; RTCP goes to the port after it."""
    profile: str
    """``RTP/AVP``, ``RTP/SAVP``…"""
    codecs: tuple[tuple[int, str], ...]
    """Payload type and ``NAME/RATE``."""

    @property
    def secure(self) -> bool:
        return "SAVP" in self.profile


@dataclass(frozen=True, slots=True)
class SipMessage:
    """One SIP message over UDP, as captured."""

    at: float
    """Seconds since 1970."""
    source: Endpoint
    destination: Endpoint
    summary: str
    """``INVITE`` or ``200 OK``."""
    method: str
    """Of the request, or of the request that is answered (CSeq)."""
    status: int | None
    """None in a request."""
    call_id: str
    lines: tuple[tuple[str, str], ...]
    """Every line as (name, text): ``request`` or ``status`` line, headers by name, SDP lines as ``SDP c``…"""
    media: tuple[Media, ...]
    """What its SDP announces."""
    fragments: int
    """IP fragments that it came in; 1 when whole."""

    def header(self, name: str) -> str | None:
        """First header of that name, any case."""
        return next((text for key, text in self.lines if key.lower() == name.lower()), None)

    @property
    def inside(self) -> str:
        """The combination network addresses that it carries, for people: contact, where media shall go."""
        told = []
        if contact := self.header("Contact"):
            place = contact.partition("@")[2] or contact
            told.append("contact " + re.split("[>;]", place, maxsplit=1)[0])
        told += [f"{media.kind} to {media.endpoint} {media.profile}" for media in self.media]
        return " · ".join(told)


@dataclass(frozen=True, slots=True)
class Call:
    """SIP messages with one Call-ID, and the RTP that belongs to them."""

    call_id: str
    messages: tuple[SipMessage, ...]
    """In the order of capture, repeats included."""
    streams: tuple[RtpStream, ...]

    @property
    def caller(self) -> Endpoint:
        """Who sent the first request."""
        first = self.messages[0]
        return first.source if first.status is None else first.destination

    @property
    def callee(self) -> Endpoint:
        first = self.messages[0]
        return first.destination if first.status is None else first.source

    @property
    def answered_at(self) -> float | None:
        """When the first 2xx to an INVITE was seen, seconds since 1970."""
        return next((m.at for m in self.messages if m.method == "INVITE" and m.status and 200 <= m.status < 300), None)

    def stream_to(self, destination: IPv4Address, port: int | None = None) -> RtpStream | None:
        """The longest stream towards an address (and port)."""
        fitting = (
            stream
            for stream in self.streams
            if stream.destination.address == destination and port in (None, stream.destination.port)
        )
        return max(fitting, key=lambda stream: stream.packets, default=None)


@dataclass(frozen=True, slots=True)
class Flow:
    """Packets of one protocol from one place to another."""

    protocol: int
    source: IPv4Address
    source_port: int | None
    destination: IPv4Address
    destination_port: int | None


@dataclass(frozen=True, slots=True)
class Traffic:
    """Everything of interest in one capture."""

    calls: tuple[Call, ...]
    """In the order in which they began."""
    flows: Counter[Flow] = field(default_factory=Counter)
    """All IPv4 packets, counted by flow."""
    malformed: int = 0
    """Datagrams that begin like SIP and are not."""

    def call(self, call_id: str) -> Call | None:
        return next((call for call in self.calls if call.call_id == call_id), None)


@dataclass(frozen=True, slots=True, order=True)
class Stranger:
    """An address, or address and port, that nobody leased."""

    address: IPv4Address
    port: int | None
    where: str
    """``packet source``, ``INVITE Contact``, ``200 OK SDP m``…"""

    def __str__(self) -> str:
        place = str(self.address) if self.port is None else f"{self.address}:{self.port}"
        return f"{place} in {self.where}"


def read_traffic(path: Path) -> Traffic:
    """Calls and flows of a pcap file. Raises UsageError when it is none."""
    return analyse(read_packets(path))


def analyse(packets: Iterable[Packet]) -> Traffic:
    """Calls and flows of packets in the order of capture."""
    flows: Counter[Flow] = Counter()
    messages: dict[str, list[SipMessage]] = {}
    announced: dict[Endpoint, tuple[str, Media]] = {}
    meters: dict[tuple[str, Endpoint, Endpoint, int], RtpMeter] = {}
    malformed = 0
    for packet in packets:
        flows[
            Flow(
                packet.protocol,
                packet.source,
                packet.source_port,
                packet.destination,
                packet.destination_port,
            )
        ] += 1
        if packet.protocol != UDP or packet.source_port is None or packet.destination_port is None:
            continue
        source = Endpoint(packet.source, packet.source_port)
        destination = Endpoint(packet.destination, packet.destination_port)
        if SIP_START.match(packet.payload):
            message = parse_sip(packet, source, destination)
            if message is None:
                malformed += 1
                continue
            messages.setdefault(message.call_id, []).append(message)
            announced.update((media.endpoint, (message.call_id, media)) for media in message.media)
        elif destination in announced and is_rtp(packet.payload):
            call_id, media = announced[destination]
            ssrc = int.from_bytes(packet.payload[8:12])
            key = (call_id, source, destination, ssrc)
            if key not in meters:
                meters[key] = RtpMeter(source, destination, ssrc, dict(media.codecs), media.secure)
            meters[key].add(packet.at, packet.payload)
    streams: dict[str, list[RtpStream]] = {}
    for (call_id, *_), meter in meters.items():
        streams.setdefault(call_id, []).append(meter.stream())
    calls = tuple(Call(call_id, tuple(found), tuple(streams.get(call_id, ()))) for call_id, found in messages.items())
    return Traffic(calls=calls, flows=flows, malformed=malformed)


def parse_sip(packet: Packet, source: Endpoint, destination: Endpoint) -> SipMessage | None:
    """The SIP message in a UDP packet, None when it does not hold together."""
    try:
        message = Message.parse(packet.payload)
        cseq, call_id = message.cseq, message.call_id
        body = message.body.decode("utf-8")
    except (ValueError, KeyError):
        return None
    start = packet.payload.split(b"\r\n", 1)[0].decode("utf-8")
    if isinstance(message, Request):
        first_line, summary, status = ("request", start), message.method, None
    else:
        first_line, summary = ("status", start), f"{message.code} {message.phrase}"
        status = message.code
    lines = [first_line]
    names = message.headers.keys()
    lines += [(name, value) for name in names for value in message.headers.getlist(name)]
    media: tuple[Media, ...] = ()
    if (message.headers.get("Content-Type") or "").lower().startswith("application/sdp"):
        lines += [(f"SDP {line[0]}", line[2:]) for line in body.splitlines() if line[1:2] == "="]
        media = tuple(parse_sdp(body))
    return SipMessage(
        at=packet.at,
        source=source,
        destination=destination,
        summary=summary,
        method=cseq.method,
        status=status,
        call_id=call_id,
        lines=tuple(lines),
        media=media,
        fragments=packet.fragments,
    )


def parse_sdp(text: str) -> Iterator[Media]:
    """Media of an SDP with an IPv4 address and a port; lines that do not hold together are passed over."""
    head, *sections = re.split(r"^m=", text, flags=re.MULTILINE)
    common = _connection(head)
    for section in sections:
        first, *rest = section.split("\n", 1)
        match = re.match(r"(\S+) ([0-9]{1,5})(?:/\d+)? (\S+)((?: \S+)*)", first)
        address = _connection(rest[0] if rest else "") or common
        if match is None or address is None or not 0 < int(match[2]) < 65536:
            continue
        names = dict(re.findall(r"^a=rtpmap:(\d+) (\S+)", section, flags=re.MULTILINE))
        yield Media(
            kind=match[1],
            endpoint=Endpoint(address, int(match[2])),
            profile=match[3],
            codecs=tuple((int(number), names[number]) for number in match[4].split() if number in names),
        )


def _connection(text: str) -> IPv4Address | None:
    match = re.search(r"^c=IN IP4 ([0-9.]+)", text, flags=re.MULTILINE)
    try:
        return IPv4Address(match[1]) if match else None
    except AddressValueError:
        return None


def unleased_addresses(
    traffic: Traffic,
    leased: Mapping[IPv4Address, Collection[PortRange]],
    outside: Collection[IPv4Network],
) -> tuple[Stranger, ...]:
    """Every address and port that should not have been seen outside, each place once.

    Looks at source and destination of every packet, and at every IPv4 address in SIP messages, wherever it
    stands: request line, Via, Contact, From, any other header, SDP c=, m=, o= and attributes.

    ``leased`` are the external addresses and the ports of them that may appear; ``outside`` are networks of
    others, where any port may. Traffic that carries no port (ICMP) is judged by its address.
    """

    def allowed(address: IPv4Address, port: int | None) -> bool:
        if any(address in network for network in outside):
            return True
        if address not in leased:
            return False
        return port is None or any(port in ports for ports in leased[address])

    seen: list[Stranger] = []
    for flow in traffic.flows:
        seen.append(Stranger(flow.source, flow.source_port, "packet source"))
        seen.append(Stranger(flow.destination, flow.destination_port, "packet destination"))
    for call in traffic.calls:
        for message in call.messages:
            seen.extend(_addresses(message))
    return tuple(sorted({found for found in seen if not allowed(found.address, found.port)}, key=str))


def _addresses(message: SipMessage) -> Iterator[Stranger]:
    for name, text in message.lines:
        for match in ADDRESS.finditer(text):
            try:
                address = IPv4Address(match[1])
            except AddressValueError:
                continue
            # 0.0.0.0 names nobody: media on hold, or a statistic about a socket that is bound to any address.
            if address.is_unspecified:
                continue
            yield Stranger(address, int(match[2]) if match[2] else None, f"{message.summary} {name}")
    for media in message.media:
        yield Stranger(media.endpoint.address, media.endpoint.port, f"{message.summary} SDP m")
