"""``dnatctl capture``: a line per PAP, SIP and ICMP message on an interface, everything into a pcap file."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from scapy.error import Scapy_Exception
from scapy.layers.inet import ICMP, IP, UDP
from scapy.sendrecv import sniff
from scapy.utils import PcapReader

from dnat.capture.calls import SIP_START, parse_sip
from dnat.capture.frames import Packet, opened
from dnat.capture.pap_layer import PAP, PAPHostId, PAPLease, PAPReason, PAPWant
from dnat.capture.recorder import Recorder
from dnat.capture.rtp import Endpoint
from dnat.errors import PlatformError
from dnat.pap.messages import AGENT_PORT, SERVER_PORT, MessageType
from dnat.system import netns

PAP_PORTS = {SERVER_PORT, AGENT_PORT}


def watch(
    interface: str,
    say: Callable[[str], None],
    *,
    pcap: Path | None = None,
    seconds: float | None = None,
    count: int = 0,
    ready: Callable[[], None] = lambda: None,
) -> int | None:
    """Say one line per message on ``interface`` until Ctrl-C, or for so many seconds or messages.

    With ``pcap``, all packets go into that file as well, whatever is said; the number of packets that the
    kernel had to drop from it is returned, else None. ``ready`` is called once packets are being seen. Raises
    PlatformError without root or when there is no such interface, BrokenPipeError when ``say`` does.
    """
    netns.require_root()
    there = [name for _, name in socket.if_nameindex()]
    if interface not in there:
        raise PlatformError(f"no interface called {interface}; there are: {', '.join(there)}")
    said, reader_gone = 0, False

    def take(packet: Any) -> None:
        nonlocal said, reader_gone
        line = describe(packet)
        if line is not None and not (count and said >= count) and not reader_gone:
            said += 1
            try:
                say(line)
            except BrokenPipeError:
                # scapy would take it for a fault of the interface.
                reader_gone = True

    recorder = Recorder(None, interface, pcap) if pcap is not None else None
    with recorder or contextlib.nullcontext():
        try:
            # scapy takes care of Ctrl-C and returns.
            sniff(
                iface=interface,
                filter="udp or icmp or ip[6:2] & 0x1fff != 0",
                prn=take,
                store=False,
                timeout=seconds,
                stop_filter=lambda _: reader_gone or (bool(count) and said >= count),
                started_callback=ready,
            )
        except (OSError, ValueError, Scapy_Exception) as error:
            raise PlatformError(f"cannot capture on {interface}: {error}") from error
    if reader_gone:
        raise BrokenPipeError
    return recorder.dropped if recorder is not None else None


def read(pcap: Path, say: Callable[[str], None]) -> None:
    """Say one line per message of a pcap file. Raises UsageError when it is none."""
    with opened(pcap, PcapReader) as reader:
        for packet in reader:
            if (line := describe(packet)) is not None:
                say(line)


def describe(packet: Any) -> str | None:
    """A line about a scapy packet, None when it is neither PAP nor SIP nor ICMP (or is a later fragment)."""
    if IP not in packet or packet[IP].frag:
        return None
    at = float(packet.time)
    clock = time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}"
    ip = packet[IP]
    if ICMP in packet:
        return f"{clock}  {ip.src} → {ip.dst}  ICMP {_icmp(packet[ICMP])}"
    if UDP not in packet:
        return None
    udp = packet[UDP]
    way = f"{clock}  {ip.src}:{udp.sport} → {ip.dst}:{udp.dport}"
    if PAP in packet:
        return f"{way}  PAP {_pap(packet[PAP])}"
    payload = bytes(udp.payload)
    if PAP_PORTS & {udp.sport, udp.dport}:
        return f"{way}  not PAP: {len(payload)} octets"
    if not SIP_START.match(payload):
        return None
    line = payload.split(b"\r\n", 1)[0].decode(errors="replace")
    source, destination = IPv4Address(ip.src), IPv4Address(ip.dst)
    whole = Packet(at, source, destination, ip.proto, udp.sport, udp.dport, payload, 1)
    message = parse_sip(whole, Endpoint(source, udp.sport), Endpoint(destination, udp.dport))
    inside = f"  ({message.inside})" if message is not None and message.inside else ""
    return f"{way}  SIP {line.removesuffix(' SIP/2.0').removeprefix('SIP/2.0 ')}{inside}"


def _pap(message: Any) -> str:
    told = [message.sprintf("%PAP.type%")]
    if message.type not in (MessageType.REQUEST, MessageType.RELEASE):
        told.append(message.sprintf("%PAP.result%"))
    for each in message.attributes:
        if isinstance(each, PAPWant):
            ports = f"{each.count} ports" if each.count > 1 else "1 port"
            first = f" from {each.first}" if each.first else ""
            told.append(each.sprintf(f"wants {ports}{first}, %protocol% %purpose%"))
        elif isinstance(each, PAPLease):
            ports = str(each.first) if each.first == each.last else f"{each.first}-{each.last}"
            told.append(each.sprintf(f"{each.address}:{ports} %protocol% %purpose% for {each.lifetime} s"))
        elif isinstance(each, PAPReason):
            told.append(each.text.decode(errors="replace"))
        elif not isinstance(each, PAPHostId):
            told.append(each.sprintf("%type%"))
    return " · ".join(told)


def _icmp(icmp: Any) -> str:
    kind = icmp.sprintf("%ICMP.type%")
    if icmp.type in (0, 8):
        return f"{kind} id {icmp.id} seq {icmp.seq}"
    about = ""
    if "IP in ICMP" in icmp:
        inner = icmp["IP in ICMP"]
        ports = [str(getattr(inner.payload, name, "")) for name in ("sport", "dport")]
        about = (
            f" about {inner.src}:{ports[0]} → {inner.dst}:{ports[1]}"
            if all(ports)
            else f" about {inner.src} → {inner.dst}"
        )
    code = icmp.sprintf("%ICMP.code%")
    return f"{kind} {code}{about}"
