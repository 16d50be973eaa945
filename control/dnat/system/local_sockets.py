"""Which of a host's own source ports are in use, as /proc/net tells: cheap enough to look several times a second."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from dnat.types import PortRange

_NET = Path("/proc/thread-self/net")
_TCP, _UDP = ("tcp", "tcp6"), ("udp", "udp6", "udplite", "udplite6")
_NO_PEER = "0000"
_CONNECTED = ("01", "08")
"""ESTABLISHED, and CLOSE_WAIT: the program has not closed it."""
_COUNTED = {"TCP:": ("inuse", "tw"), "UDP:": ("inuse",), "UDPLITE:": ("inuse",)}


@dataclass(frozen=True, slots=True)
class Usage:
    """Sockets whose local port lies in one range."""

    sockets: int
    """Of any kind and state, TIME_WAIT included."""
    taken: int
    """Ports that the next socket cannot have, at worst. UDP and TCP have ports of their own. A connection of TCP shuts
    its port to others with the same destination only, so the destination with most connections counts.
    """


def count() -> int:
    """All sockets of this namespace, or a few more: a bound that costs next to nothing."""
    total = 0
    for line in _lines("sockstat") + _lines("sockstat6"):
        name, *words = line.split()
        values = dict(zip(words[::2], words[1::2], strict=False))
        total += sum(int(values.get(each, 0)) for each in _COUNTED.get(name.replace("6:", ":"), ()))
    return total


def ports() -> set[int]:
    """Every port that a socket has."""
    return {port for port, _ in _ports(_UDP) + _ports(_TCP)}


def connections(address: IPv4Address, ports: Collection[int]) -> list[tuple[int, IPv4Address, int]]:
    """TCP connections that programs here have at this address and these ports: port, address and port of the peer."""
    own = {f"{int.from_bytes(address.packed, sys.byteorder):08X}:{port:04X}" for port in ports}
    found = []
    for line in _lines("tcp")[1:]:
        _, local, peer, state, _ = line.split(maxsplit=4)
        if local in own and state in _CONNECTED:
            octets = int(peer[:8], 16).to_bytes(4, sys.byteorder)
            found.append((int(local[-4:], 16), IPv4Address(octets), int(peer[-4:], 16)))
    return found


def usage(ranges: Iterable[PortRange]) -> dict[PortRange, Usage]:
    """What is in use of each range."""
    udp, tcp = _ports(_UDP), _ports(_TCP)
    return {each: _usage_of(each, udp, tcp) for each in ranges}


def _usage_of(ports: PortRange, udp: list[tuple[int, str]], tcp: list[tuple[int, str]]) -> Usage:
    datagram = [port for port, _ in udp if port in ports]
    stream = [(port, peer) for port, peer in tcp if port in ports]
    connected = Counter(peer for _, peer in stream if not peer.endswith(_NO_PEER))
    bound = {port for port, peer in stream if peer.endswith(_NO_PEER)}
    busiest = max(connected.values(), default=0)
    return Usage(len(datagram) + len(stream), max(len(set(datagram)), len(bound) + busiest))


def _ports(tables: Iterable[str]) -> list[tuple[int, str]]:
    """Local port of each socket, and its peer as the kernel writes it."""
    found = []
    for table in tables:
        for line in _lines(table)[1:]:
            _, local, peer, _ = line.split(maxsplit=3)
            found.append((int(local[-4:], 16), peer))
    return found


def _lines(table: str) -> list[str]:
    try:
        return (_NET / table).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:  # this kernel has no IPv6, or no UDP-Lite
        return []
