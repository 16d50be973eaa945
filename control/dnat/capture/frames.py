"""From a pcap file to whole IPv4 packets: link headers off, fragments put together again.

scapy reads the file; the fixed headers are unpacked here, because dissecting every RTP packet with scapy
takes a hundred times longer than looking at the few fields that matter.
"""

from __future__ import annotations

import contextlib
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, BinaryIO

from scapy.error import Scapy_Exception
from scapy.utils import RawPcapReader

from dnat.errors import UsageError

TCP, UDP = 6, 17

LINK_ETHERNET, LINK_RAW, LINK_IPV4 = 1, 101, 228
ETHERTYPE_IPV4, ETHERTYPE_VLAN = 0x0800, 0x8100

MAX_UNFINISHED = 256
"""Datagrams with missing fragments that are kept; past that the oldest is given up."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One whole IPv4 packet."""

    at: float
    """When its last fragment was captured, seconds since 1970."""
    source: IPv4Address
    destination: IPv4Address
    protocol: int
    """IANA protocol number."""
    source_port: int | None
    """None unless TCP or UDP."""
    destination_port: int | None
    payload: bytes
    """What follows the UDP header; for other protocols, what follows the IP header."""
    fragments: int
    """How many pieces it came in; 1 when whole."""


@contextlib.contextmanager
def opened(path: Path, kind: Callable[[BinaryIO], Any]) -> Iterator[Any]:
    """A pcap file by one of scapy's readers. Raises UsageError when it is none."""
    with contextlib.ExitStack() as stack:
        try:
            # scapy leaves a file open that turns out to be no capture.
            reader = kind(stack.enter_context(path.open("rb")))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        except (EOFError, Scapy_Exception) as error:
            raise UsageError(f"{path} is no capture file: {error}") from error
        yield reader


def read_packets(path: Path) -> Iterator[Packet]:
    """IPv4 packets of a pcap file in the order of capture; all else, and what is cut short, is passed over.

    Raises UsageError when the file is no pcap, or of a link type other than Ethernet and raw IP.
    """
    with opened(path, RawPcapReader) as reader:
        link = getattr(reader, "linktype", None)
        if link not in (LINK_ETHERNET, LINK_RAW, LINK_IPV4):
            raise UsageError(f"{path}: need a pcap file of Ethernet or raw IP, this has link type {link}")
        fraction = 1e-9 if reader.nano else 1e-6
        assembly = _Assembly()
        for frame, meta in reader:
            data = _strip_ethernet(frame) if link == LINK_ETHERNET else frame
            if data and (packet := _parse(data, meta.sec + meta.usec * fraction, assembly)):
                yield packet


def _strip_ethernet(frame: bytes) -> bytes | None:
    offset = 12
    while frame[offset : offset + 2] == ETHERTYPE_VLAN.to_bytes(2):
        offset += 4
    if frame[offset : offset + 2] != ETHERTYPE_IPV4.to_bytes(2):
        return None
    return frame[offset + 2 :]


def _parse(data: bytes, at: float, assembly: _Assembly) -> Packet | None:
    if len(data) < 20 or data[0] >> 4 != 4:
        return None
    header = (data[0] & 15) * 4
    length, identification, offset_field = struct.unpack_from("!HHH", data, 2)
    if not 20 <= header <= length <= len(data):
        return None
    protocol, addresses = data[9], data[12:20]
    body = data[header:length]
    pieces = 1
    more, offset = bool(offset_field & 0x2000), (offset_field & 0x1FFF) * 8
    if more or offset:
        whole = assembly.add((addresses, identification, protocol), offset, body, more)
        if whole is None:
            return None
        body, pieces = whole
    source_port = destination_port = None
    if protocol in (TCP, UDP) and len(body) >= 8:
        source_port, destination_port = struct.unpack_from("!HH", body)
        if protocol == UDP:
            body = body[8:]
    return Packet(
        at=at,
        source=_address(addresses[:4]),
        destination=_address(addresses[4:]),
        protocol=protocol,
        source_port=source_port,
        destination_port=destination_port,
        payload=body,
        fragments=pieces,
    )


@lru_cache(maxsize=4096)
def _address(octets: bytes) -> IPv4Address:
    return IPv4Address(octets)


@dataclass(slots=True)
class _Unfinished:
    pieces: dict[int, bytes] = field(default_factory=dict)
    total: int | None = None


class _Assembly:
    """Fragments that wait for the rest of their datagram (RFC 791, section 3.2)."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[tuple[bytes, int, int], _Unfinished] = OrderedDict()

    def add(self, key: tuple[bytes, int, int], offset: int, data: bytes, more: bool) -> tuple[bytes, int] | None:
        """Take a fragment; returns the whole body and its number of pieces once nothing is missing."""
        entry = self._waiting.setdefault(key, _Unfinished())
        entry.pieces[offset] = data
        if not more:
            entry.total = offset + len(data)
        if entry.total is not None:
            end = 0
            for start in sorted(entry.pieces):
                if start != end:
                    break
                end += len(entry.pieces[start])
            if end == entry.total:
                del self._waiting[key]
                return b"".join(entry.pieces[start] for start in sorted(entry.pieces)), len(entry.pieces)
        if len(self._waiting) > MAX_UNFINISHED:
            self._waiting.popitem(last=False)
        return None
