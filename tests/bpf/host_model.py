"""A model of the host programs in plain Python: what has to become of one packet, said in as few words as possible.

It shares nothing with the programs. It says which octets a packet leaves with, save for checksums: of those it asks
that each covers what it covered before, whether it was right or wrong (`residue`), and that a UDP checksum
neither appears nor vanishes. Ports that the programs draw at random it takes from the packet that left, if
the programs may have drawn them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

TCP, UDP, ICMP, OTHER = range(4)
PASS, DROP, REDIRECT = -1, 2, 7

_ETHERNET = 14
_CLASSES = {6: TCP, 17: UDP, 136: UDP, 1: ICMP}
_WITH_PORTS = {6, 17, 33, 132, 136}
_QUERIES = {0, 8, 13, 14}
_ERRORS = {3, 4, 11, 12}
_CHECKSUM = {6: 16, 17: 6, 136: 6, 1: 2}


class Wrong(AssertionError):
    """A packet was not treated as it has to be."""


def need(holds: bool, what: str) -> None:
    if not holds:
        raise Wrong(what)


def residue(octets: bytes) -> int:
    """What a checksum and all it covers add up to: the same after a change that the checksum followed."""
    return int.from_bytes(octets + b"\0" * (len(octets) % 2)) % 0xFFFF


@dataclass(slots=True)
class Parsed:
    """What the programs may go by in a packet."""

    l4: int
    """Offset of the transport header."""
    protocol: int
    """Of the header that has the ports."""
    port_class: int
    kind: str
    """``ports``, ``query``, ``error``, ``fragment`` or ``portless``."""
    source_port: int = 0
    destination_port: int = 0
    quoted: int = 0
    """Offset of the quoted transport header."""
    end: int = 0
    """Of the packet; a frame may go on."""


def parse(frame: bytes) -> Parsed | None:
    """None: malformed."""
    first = frame[_ETHERNET]
    if first >> 4 != 4 or first & 15 < 5:
        return None
    l4, protocol = _ETHERNET + (first & 15) * 4, frame[23]
    payload = max(0, int.from_bytes(frame[16:18]) - (first & 15) * 4)
    available = min(payload, len(frame) - l4)
    more, offset = frame[20] & 0x20, (int.from_bytes(frame[20:22]) & 0x1FFF) * 8
    if (more or offset) and (not payload or offset + payload > 65535 or (more and payload % 8)):
        return None
    parsed = Parsed(l4, protocol, _CLASSES.get(protocol, OTHER), "portless", end=l4 + available)
    if offset:
        parsed.kind = "fragment"
    elif protocol in _WITH_PORTS:
        if available < (20 if protocol == 6 else 8):
            return None
        parsed.kind = "ports"
        parsed.source_port = int.from_bytes(frame[l4 : l4 + 2])
        parsed.destination_port = int.from_bytes(frame[l4 + 2 : l4 + 4])
    elif protocol == 1:
        if available < 8:
            return None
        if frame[l4] in _QUERIES:
            parsed.kind = "query"
            parsed.source_port = parsed.destination_port = int.from_bytes(frame[l4 + 4 : l4 + 6])
        elif frame[l4] in _ERRORS:
            _parse_quoted(frame, parsed)
    return parsed


def _parse_quoted(frame: bytes, parsed: Parsed) -> None:
    ip = parsed.l4 + 8
    frame = frame[: parsed.end]
    if len(frame) < ip + 20 or frame[ip] >> 4 != 4 or frame[ip] & 15 < 5:
        return
    l4, protocol = ip + (frame[ip] & 15) * 4, frame[ip + 9]
    if int.from_bytes(frame[ip + 6 : ip + 8]) & 0x1FFF or len(frame) < l4 + 8:
        return
    if protocol in _WITH_PORTS:
        source, destination = int.from_bytes(frame[l4 : l4 + 2]), int.from_bytes(frame[l4 + 2 : l4 + 4])
    elif protocol == 1 and frame[l4] in _QUERIES:
        source = destination = int.from_bytes(frame[l4 + 4 : l4 + 6])
    else:
        return
    parsed.kind, parsed.quoted, parsed.protocol = "error", l4, protocol
    parsed.port_class = _CLASSES.get(protocol, OTHER)
    # The quoted packet went the other way.
    parsed.source_port = destination if frame[ip + 16 : ip + 20] == frame[26:30] else 0
    parsed.destination_port = source if frame[ip + 12 : ip + 16] == frame[30:34] else 0


@dataclass
class HostModel:
    """One host: its ports, and its bindings so far."""

    external: bytes
    native: Collection[tuple[int, int]]
    """Class and port, here and below."""
    pool: Collection[tuple[int, int]]
    ids: list[int]
    exhausted_for_good: bool = False
    outward: dict[tuple[int, int], int] = field(default_factory=dict)
    """Class and local port to unique port."""
    inward: dict[tuple[int, int], int] = field(default_factory=dict)
    counted: Counter[str] = field(default_factory=Counter)

    def check_out(self, frame: bytes, verdict: int, left: bytes) -> None:
        """Judge what host_out did. Raises Wrong."""
        if frame[12:14] != b"\x08\0" or len(frame) < 34 or frame[26:30] != self.external or frame[30] >= 0xE0:
            return self._unchanged(frame, verdict, left, PASS)
        parsed = parse(frame)
        if parsed is None:
            return self._unchanged(frame, verdict, left, DROP, "drop_malformed")
        key = (parsed.port_class, parsed.source_port)
        if parsed.kind == "fragment":
            return self._leaves(frame, verdict, left, "host_out_fragment")
        if parsed.kind == "portless":
            return self._refused(frame, parsed, verdict, left, "drop_not_translatable")
        if key in self.native:
            return self._leaves(frame, verdict, left, "host_out_native")
        if parsed.port_class == OTHER:
            return self._refused(frame, parsed, verdict, left, "drop_not_translatable")
        not_ours = parsed.kind == "error" and not parsed.source_port
        port = None if not_ours else self.outward.get(key)
        if port is None and parsed.kind == "error":
            return self._unchanged(frame, verdict, left, DROP, "drop_error_unbound")
        if port is None:
            free = [port for port in self._pool_of(parsed.port_class) if (parsed.port_class, port) not in self.inward]
            if not free:
                return self._refused(frame, parsed, verdict, left, "drop_pool_exhausted")
            port = int.from_bytes(left[self._port_at(parsed, source=True) :][:2])
            self._check_draw(parsed, port, free)
            self.outward[key] = port
            self.inward[parsed.port_class, port] = parsed.source_port
            self.counted["host_binding_created"] += 1
            self.counted["host_pool_low"] += len(free) == 1
        self._leaves(self._with_port(frame, parsed, left, port, source=True), verdict, left, "host_out_translated")
        return self._check_sums(frame, parsed, left)

    def check_in(self, frame: bytes, verdict: int, left: bytes) -> None:
        """Judge what host_in did. Raises Wrong."""
        if frame[12:14] != b"\x08\0" or len(frame) < 34 or frame[30:34] != self.external:
            return self._unchanged(frame, verdict, left, PASS)
        parsed = parse(frame)
        if parsed is None:
            return self._unchanged(frame, verdict, left, DROP, "drop_malformed")
        if parsed.kind in ("fragment", "portless") or parsed.port_class == OTHER:
            return self._unchanged(frame, verdict, left, PASS, "host_in_native")
        if parsed.kind == "error" and frame[0:6] == frame[6:12]:
            return self._unchanged(frame, verdict, left, PASS, "host_local")
        if parsed.kind == "error" and residue(frame[parsed.l4 + 8 : parsed.quoted]):
            return self._unchanged(frame, verdict, left, DROP, "drop_quote_damaged")
        key = (parsed.port_class, parsed.destination_port)
        local = self.inward.get(key)
        if local is None and key in self.pool:
            return self._unchanged(frame, verdict, left, DROP, "drop_unbound")
        if local is None:
            return self._unchanged(frame, verdict, left, PASS, "host_in_native")
        expected = self._with_port(frame, parsed, left, local, source=False)
        self._unchanged(expected, verdict, left, PASS, "host_in_translated")
        return self._check_sums(frame, parsed, left)

    def _pool_of(self, port_class: int) -> Iterable[int]:
        return (port for each, port in self.pool if each == port_class)

    def _check_draw(self, parsed: Parsed, port: int, free: list[int]) -> None:
        local = parsed.source_port
        need(port in free, f"drew {port}, which is not ours to draw")
        if local in free:
            return need(port == local, "a port of the pool, used by its number, stays what it is")
        sibling = self.outward.get((parsed.port_class, local ^ 1))
        if sibling is not None and (sibling ^ local) & 1 and sibling ^ 1 in free:
            return need(port == sibling ^ 1, "RTP and RTCP stay side by side")
        same = [each for each in free if (each ^ local) & 1 == 0]
        pairs = [each for each in same if each ^ 1 in free]
        return need(port in (pairs or same or free), "parity, and pairs first")

    def _unchanged(self, frame: bytes, verdict: int, left: bytes, expected: int, counted: str | None = None) -> None:
        need(verdict == expected, f"verdict {verdict} instead of {expected} ({counted})")
        need(left == frame, f"octets differ ({counted})")
        if counted:
            self.counted[counted] += 1

    def _leaves(self, frame: bytes, verdict: int, left: bytes, counted: str) -> None:
        """With an identification of our own unless it is atomic."""
        if self.ids and int.from_bytes(frame[20:22]) & 0x7FFF != 0x4000:
            number = self.ids[int.from_bytes(frame[18:20]) % len(self.ids)]
            header = _ETHERNET + (frame[_ETHERNET] & 15) * 4
            changed = frame[:18] + number.to_bytes(2) + frame[20:24] + left[24:26] + frame[26:]
            need(residue(frame[14:header]) == residue(changed[14:header]), "the IP checksum")
            frame = changed
            self.counted["host_id_replaced"] += 1
        self._unchanged(frame, verdict, left, PASS, counted)

    def _refused(self, frame: bytes, parsed: Parsed, verdict: int, left: bytes, counted: str) -> None:
        quoted = parsed.l4 - _ETHERNET + (20 if frame[23] == 6 else 8)
        silent = counted == "drop_pool_exhausted" and not self.exhausted_for_good
        silent |= frame[23] == 1 and parsed.kind != "query"
        if silent or len(frame) < _ETHERNET + quoted:
            return self._unchanged(frame, verdict, left, DROP, counted)
        ends = self.external + self.external
        header = bytes.fromhex("4500") + (28 + quoted).to_bytes(2) + bytes.fromhex("000040004001")
        expected = frame[6:12] + frame[6:14] + header + left[24:26] + ends
        expected += b"\x03\x0d" + left[36:38] + bytes(4) + frame[_ETHERNET : _ETHERNET + quoted]
        self._unchanged(expected, verdict, left, REDIRECT, counted)
        need(residue(left[14:34]) == residue(left[34:]) == 0, "checksums of the refusal")
        self.counted["host_refused"] += 1

    @staticmethod
    def _port_at(parsed: Parsed, *, source: bool) -> int:
        if parsed.kind == "error":
            return parsed.quoted + (4 if parsed.protocol == 1 else 2 if source else 0)
        return parsed.l4 + (4 if parsed.protocol == 1 else 0 if source else 2)

    def _with_port(self, frame: bytes, parsed: Parsed, left: bytes, port: int, *, source: bool) -> bytes:
        """The frame with another port, and checksums as they left."""
        expected = bytearray(frame)
        at = self._port_at(parsed, source=source)
        expected[at : at + 2] = port.to_bytes(2)
        for at in self._checksums_at(frame, parsed):
            expected[at : at + 2] = left[at : at + 2]
        return bytes(expected)

    @staticmethod
    def _checksums_at(frame: bytes, parsed: Parsed) -> list[int]:
        """Those that cover the port."""
        transport = (parsed.quoted or parsed.l4) + _CHECKSUM[parsed.protocol]
        found = [transport] if parsed.end >= transport + 2 else []
        if parsed.protocol in (17, 136) and found and frame[transport : transport + 2] == b"\0\0":
            found = []
        return found + ([parsed.l4 + 2] if parsed.kind == "error" else [])

    def _check_sums(self, frame: bytes, parsed: Parsed, left: bytes) -> None:
        checked = self._checksums_at(frame, parsed)
        for at in checked:
            start = parsed.l4 if at == parsed.l4 + _CHECKSUM.get(frame[23], 0) else parsed.quoted
            need(residue(frame[start:]) == residue(left[start:]), f"the checksum at {at}")
            if parsed.protocol in (17, 136) and at != parsed.l4 + 2:
                need(left[at : at + 2] != b"\0\0", "UDP without a checksum that had one")
