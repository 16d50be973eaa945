"""A model of the router programs in plain Python: what has to become of one packet, said in as few words as possible.

It shares nothing with the programs, and knows no flows: who owns a port, which datagrams are on their way in
fragments, and the headers of the packet decide. ``check`` takes what left, at TC or at XDP, and raises ``Wrong`` if
anything about it is not as it has to be: verdict, octets, checksums (as right or wrong as they came), and the link
address of the receiver where the programs wrote it themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from host_model import DROP, PASS, REDIRECT, Parsed, need, parse, residue

_ETHERNET, _MTU, _QUOTE = 14, 1500, 548
_HELD = range(34, 1537)
"""Octets of a frame that may be held."""
_SLOTS = 16
"""Frames held at least, whatever their sources are."""
_CUT = range(1, 9217)
_TOS = 0xC0
OUTSIDE, STACK = "outside", "stack"
"""Where a packet goes if not to a host."""


@dataclass
class Datagram:
    """What is known of a datagram in fragments."""

    target: str = ""
    first: int = 0
    """Octets in the first fragment."""
    seen: int = 0
    total: int = 0
    awaited: bool = False
    """Nothing but later ones so far: they are held."""
    held: int = 0
    conflict: bool = False


def _is_martian(source: bytes) -> bool:
    return source[0] in (0, 127) or source[0] >= 224


@dataclass
class RouterModel:
    """One router."""

    externals: Mapping[bytes, bool]
    """Whether the address is also the router's own."""
    local: frozenset[bytes]
    """The router's own addresses."""
    lan: IPv4Network
    owners: Mapping[tuple[bytes, int, int], str]
    """Address, class and port to a host."""
    macs: Mapping[str, bytes]
    """Of hosts, as far as they are known."""
    says: Mapping[str, bytes]
    """The router's address in ICMP errors, by the program that they answer."""
    held: Callable[[], int]
    """Fragments that the router says it has held so far. Where one finds no room depends on a hash of its source, and
    on nothing that the verdict says.
    """
    datagrams: dict[tuple[bytes, ...], Datagram] = field(default_factory=dict)
    counted: Counter[str] = field(default_factory=Counter)

    def check(self, program: str, frame: bytes, verdict: int, left: bytes, receiver: str | None) -> None:
        """``receiver``: to whom the programs addressed the packet; None if that is left to the kernel."""
        self._now = (frame, verdict, left, receiver)
        source, destination = frame[26:30], frame[30:34]
        self._program = program
        if frame[12:14] != b"\x08\0" or len(frame) < 34:
            return self._stays(PASS)
        if program == "router_loop":
            if source[0] == 127 or destination not in self.externals:
                return self._stays(PASS)
        elif frame[:6] != bytes(6):
            return self._stays(PASS)
        elif program == "router_wan":
            if destination not in self.externals:
                return self._stays(PASS)
            if source in self.externals or source in self.local or self._in_lan(source) or _is_martian(source):
                return self._stays(DROP, "drop_spoofed")
        elif destination[0] >= 224 or not {source, destination} & self.externals.keys():
            return self._stays(PASS)
        elif source not in self.externals and _is_martian(source):
            return self._stays(DROP, "drop_spoofed")
        parsed = parse(frame)
        if parsed is None:
            return self._stays(DROP, "drop_malformed")
        return self._known(parsed)

    def _known(self, parsed: Parsed) -> None:
        frame = self._now[0]
        key = (frame[26:34], frame[18:20], frame[23:24], frame[6:12] if self._program == "router_lan" else bytes(6))
        if parsed.kind == "fragment":
            target = self._follow(key)
            return None if target is None else self._go(parsed, target)
        source, destination = frame[26:30], frame[30:34]
        if self._program == "router_lan" and source in self.externals:
            owner = self.owners.get((source, parsed.port_class, parsed.source_port))
            if owner is None or self.macs.get(owner, frame[6:12]) != frame[6:12]:
                return self._stays(DROP, "drop_not_owner")
            self.counted["router_mac_unknown"] += owner not in self.macs
        if destination in self.externals:
            query_to_self = self._program == "router_loop" and parsed.kind == "query"
            owner = self.owners.get((destination, parsed.port_class, parsed.destination_port))
            target = STACK if query_to_self or owner is None else owner
        else:
            near = destination in self.local or self._in_lan(destination) or destination[0] == 127
            target = STACK if near else OUTSIDE
        if frame[20] & 0x20 and not self._remember(key, target):
            return None
        return self._go(parsed, target)

    def _follow(self, key: tuple[bytes, ...]) -> str | None:
        """Where a later fragment goes; None: it goes nowhere, which has been judged."""
        frame = self._now[0]
        known = self.datagrams.get(key)
        if known is None or known.awaited:
            if self._program == "router_loop":
                return self._stays(DROP, "drop_fragment_unknown")
            full = sum(one.held for one in self.datagrams.values()) >= _SLOTS
            if len(frame) not in _HELD or (full and self.held() == self.counted["router_fragment_held"]):
                return self._stays(DROP, "drop_fragment_no_room")
            known = self.datagrams.setdefault(key, Datagram(awaited=True))
            known.held += 1
            return self._stays(DROP, "router_fragment_held")
        payload, offset = self._extent()
        if known.conflict or offset < known.first:
            return self._stays(DROP, "drop_fragment_overlap")
        known.seen += payload
        if not frame[20] & 0x20:
            known.total = offset + payload
        if known.total and known.seen >= known.total:
            del self.datagrams[key]
        return known.target

    def _remember(self, key: tuple[bytes, ...], target: str) -> bool:
        """Whether a first fragment simply goes on; if not, that has been judged."""
        known = self.datagrams.get(key)
        payload, _ = self._extent()
        following = Datagram(target, payload, payload)
        if known and not known.awaited and (known.conflict or known.target != target):
            known.conflict = True
            self._stays(DROP, "drop_fragment_overlap")
            return False
        self.datagrams[key] = following
        if known and known.awaited and self._program != "router_loop":
            need(self._now[1] == DROP, "the first fragment enters again before those that waited")
            self.counted["router_fragment_released"] += known.held
            return False
        return True

    def _extent(self) -> tuple[int, int]:
        """Octets after the IP header, and before them in the datagram."""
        frame = self._now[0]
        offset = (int.from_bytes(frame[20:22]) & 0x1FFF) * 8
        return int.from_bytes(frame[16:18]) - (frame[14] & 15) * 4, offset

    def _go(self, parsed: Parsed, target: str) -> None:
        frame = self._now[0]
        if target == STACK:
            return self._to_stack(parsed)
        if self._program == "router_loop":
            return self._stays(REDIRECT, "router_from_self")
        behind = _ETHERNET + int.from_bytes(frame[16:18])
        if len(frame) > _ETHERNET + _MTU and frame[22] > 1:
            if behind > _ETHERNET + _MTU:
                return self._too_big(parsed)
            # Only what lies behind the packet made the frame too big.
            self._now = (frame[:behind], *self._now[1:])
        if frame[22] <= 1:
            return self._answered(parsed, "drop_ttl_expired", "router_time_exceeded", b"\x0b\0", bytes(4))
        way = {"router_wan": "router_in"}.get(self._program, "router_out" if target == OUTSIDE else "router_hairpin")
        return self._moves(target, way)

    def _to_stack(self, parsed: Parsed) -> None:
        destination = self._now[0][30:34]
        if self._program == "router_loop":
            return self._stays(PASS)
        if destination not in self.externals or self.externals[destination]:
            return self._stays(PASS, "router_to_self")
        mute = parsed.kind == "portless" and self._now[0][23] == 1
        return self._stays(DROP, "drop_error_unmapped" if mute else "drop_no_owner")

    def _moves(self, target: str, counted: str) -> None:
        """One hop further, and otherwise as it was."""
        frame, verdict, left, receiver = self._now
        need(verdict == REDIRECT, f"verdict {verdict} ({counted})")
        need(receiver in (None, target), f"sent to {receiver} instead of {target}")
        less = frame[:22] + bytes([frame[22] - 1]) + frame[23:24] + left[24:26] + frame[26:]
        need(left == less, f"octets differ ({counted})")
        header = _ETHERNET + (frame[_ETHERNET] & 15) * 4
        if header <= len(frame):
            need(residue(frame[14:header]) == residue(left[14:header]), "the IP checksum")
        self.counted[counted] += 1

    def _too_big(self, parsed: Parsed) -> None:
        frame, verdict, left, _ = self._now
        if frame[20] & 0x40:
            mtu = b"\0\0" + _MTU.to_bytes(2)
            return self._answered(parsed, "drop_too_big", "router_fragmentation_needed", b"\x03\x04", mtu)
        payload, offset = self._extent()
        if parsed.l4 != 34 or payload not in _CUT or len(frame) < 34 + payload:
            return self._stays(DROP, "drop_too_big")
        start = (payload - 1) // 1480 * 1480
        bits = (offset + start) // 8 | (frame[20] & 0x20) << 8
        header = frame[14:16] + (20 + payload - start).to_bytes(2) + frame[18:20] + bits.to_bytes(2) + frame[22:24]
        expected = frame[:14] + header + left[24:26] + frame[26:34] + frame[34 + start : 34 + payload]
        need(verdict == REDIRECT and left == expected, "the last piece")
        need(residue(frame[14:34]) == residue(left[14:34]), "the IP checksum of the last piece")
        self.counted["router_cut"] += 1
        return None

    def _answered(self, parsed: Parsed, dropped: str, counted: str, kind: bytes, rest: bytes) -> None:
        """An ICMP error back to the sender, about what may be answered (RFC 1812, section 4.3.2.7)."""
        frame, verdict, left, receiver = self._now
        self.counted[dropped] += 1
        payload, _ = self._extent()
        quoted = min(parsed.l4 - _ETHERNET + max(0, payload), _QUOTE)
        mute = parsed.kind in ("fragment", "error") or (frame[23] == 1 and parsed.kind != "query")
        if mute or frame[26:30] == bytes(4) or frame[26] >= 224 or frame[26] == 127 or len(frame) < _ETHERNET + quoted:
            return self._stays(DROP, "router_error_unsent")
        header = bytes([0x45, _TOS]) + (28 + quoted).to_bytes(2) + bytes.fromhex("000040004001") + left[24:26]
        header += self.says[self._program] + frame[26:30]
        expected = frame[:14] + header + kind + left[36:38] + rest + frame[_ETHERNET : _ETHERNET + quoted]
        need(verdict == REDIRECT and receiver is None and left == expected, f"the error ({counted})")
        need(residue(left[14:34]) == residue(left[34:]) == 0, "checksums of the error")
        self.counted[counted] += 1
        return None

    def _stays(self, expected: int, counted: str | None = None) -> None:
        frame, verdict, left, _ = self._now
        need(verdict == expected, f"verdict {verdict} instead of {expected} ({counted})")
        need(left == frame, f"octets differ ({counted})")
        if counted:
            self.counted[counted] += 1

    def _in_lan(self, address: bytes) -> bool:
        return IPv4Address(address) in self.lan
