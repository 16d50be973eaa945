"""What captures say about a call whose signalling may be unreadable: RTP between two blocks of ports."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sip_phones import CallPhone

from dnat.capture.frames import UDP, Packet, read_packets
from dnat.capture.rtp import Endpoint, RtpMeter, RtpStream, is_rtp


def of(phone: CallPhone, address: object, port: int | None) -> bool:
    """Whether a place is one of the phone's."""
    return str(address) == phone.address and port is not None and port in phone.ports


def packets_between(packets: Iterable[Packet], sender: CallPhone, receiver: CallPhone) -> list[Packet]:
    return [
        packet
        for packet in packets
        if of(sender, packet.source, packet.source_port) and of(receiver, packet.destination, packet.destination_port)
    ]


def streams(path: Path, sender: CallPhone, receiver: CallPhone) -> dict[int, RtpStream]:
    """RTP of one direction by SSRC."""
    meters: dict[int, RtpMeter] = {}
    for packet in packets_between(read_packets(path), sender, receiver):
        if packet.protocol != UDP or not is_rtp(packet.payload):
            continue
        assert packet.source_port is not None and packet.destination_port is not None
        places = Endpoint(packet.source, packet.source_port), Endpoint(packet.destination, packet.destination_port)
        ssrc = int.from_bytes(packet.payload[8:12])
        meters.setdefault(ssrc, RtpMeter(*places, ssrc, {}, False)).add(packet.at, packet.payload)
    return {ssrc: meter.stream() for ssrc, meter in meters.items()}


def counts(found: dict[int, RtpStream]) -> dict[int, tuple[int, int, int]]:
    """Packets, losses and duplicates by SSRC: the same at both ends of a good path."""
    return {ssrc: (stream.packets, stream.lost, stream.duplicates) for ssrc, stream in found.items()}
