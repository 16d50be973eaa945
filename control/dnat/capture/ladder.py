"""Pictures of calls: SIP messages as arrows and RTP streams as bands between the nodes, as SVG.

A picture is made of *scenes*, one below the other; a scene holds one call or several at the same time. Rows
follow the order of time; their distance does not.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from dnat.capture import svg
from dnat.capture.calls import Call, SipMessage
from dnat.capture.rtp import Endpoint, RtpStream
from dnat.types import PortRange

WIDTH = 1120
GUTTER = 86
"""Room for the times at the left, pixels."""
HEAD = 128
MESSAGE_ROW = 52
BARE_MESSAGE_ROW = 38
STREAM_ROW = 50
HAIRPIN_EXTRA = 36
"""More height for what goes to the router and comes back."""
HAIRPIN_SECONDS = 0.1
"""A message that is seen again within this was not sent again: that takes half a second (RFC 3261, T1)."""
SCENE_HEAD = 62
SCENE_GAP = 22

COLOURS = ("#2457c5", "#0f8a7e", "#8a4fd0", "#b0357a", "#5b7a1f")
"""Of the nodes on the near side of the router, in turn."""
ROUTER_COLOUR = "#475569"
OUTSIDE_COLOUR = "#c2560c"


@dataclass(frozen=True, slots=True)
class LadderNode:
    """A column of the picture."""

    name: str
    lines: tuple[str, ...]
    """What stands below the name: addresses, ports."""
    holds: tuple[tuple[IPv4Address, PortRange | None], ...] = ()
    """Addresses and ports that packets of this node carry; None for every port."""

    def has(self, endpoint: Endpoint) -> bool:
        return any(
            endpoint.address == address and (ports is None or endpoint.port in ports) for address, ports in self.holds
        )


@dataclass(frozen=True, slots=True)
class StreamSeen:
    """An RTP stream measured at its receiver, with what its sender sent."""

    stream: RtpStream
    sent: int
    """Packets seen at the sender."""

    @property
    def lost(self) -> int:
        """Packets that did not reach the receiver: missing after they left, or missing in the numbers."""
        # A sender's capture does not show what its own kernel dropped, the sequence numbers do; those do not
        # show what was lost at the start and at the end.
        return max(self.sent - self.stream.packets, self.stream.lost)


@dataclass(frozen=True, slots=True)
class SceneCall:
    """A call as both its ends saw it."""

    call: Call
    """Messages as captured at one end."""
    streams: tuple[StreamSeen, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """One or more calls at the same time."""

    title: str
    note: str
    calls: tuple[SceneCall, ...]
    verdict: str = ""
    """Short result for the right end of the heading."""
    good: bool = True
    """Colour of the verdict."""


@dataclass(frozen=True, slots=True)
class _Row:
    """What takes one line of a scene."""

    at: float
    source: Endpoint
    destination: Endpoint
    message: SipMessage | None = None
    repeats: int = 0
    seen: StreamSeen | None = None


@dataclass(frozen=True, slots=True)
class _Way:
    """The line that a packet's way is drawn as."""

    points: list[tuple[float, float]]
    """Two points, or four when it turns at the router."""
    router: float
    """Where the router's column is."""

    @property
    def turns(self) -> bool:
        return len(self.points) > 2

    @property
    def direction(self) -> int:
        """1 when it sets out to the right, -1 to the left."""
        return 1 if self.points[1][0] > self.points[0][0] else -1

    @property
    def passes_router(self) -> bool:
        low, high = sorted((self.points[0][0], self.points[-1][0]))
        return not self.turns and low < self.router < high

    @property
    def router_y(self) -> float:
        return (self.points[0][1] + self.points[-1][1]) / 2

    @property
    def first_middle(self) -> float:
        return (self.points[0][0] + self.points[1][0]) / 2

    @property
    def longest(self) -> tuple[float, float]:
        """Middle of the longest horizontal piece: where there is room for words."""
        pieces = [self.points[:2], self.points[-2:]]
        (x1, y), (x2, _) = max(pieces, key=lambda piece: abs(piece[0][0] - piece[1][0]))
        return (x1 + x2) / 2, y


def draw_ladder(
    near: Sequence[LadderNode],
    router: LadderNode,
    far: Sequence[LadderNode],
    scenes: Sequence[Scene],
    caption: str,
) -> str:
    """SVG of the scenes, 1120 pixels wide.

    ``near`` are the nodes on the router's LAN, ``far`` those outside. A message between two near nodes goes
    to the router and back; one that crosses the router passes through its column. Endpoints that no node
    holds are drawn at the router.
    """
    return _Picture(near, router, far).draw(scenes, caption)


class _Picture:
    def __init__(self, near: Sequence[LadderNode], router: LadderNode, far: Sequence[LadderNode]) -> None:
        self._nodes = [*near, router, *far]
        self._router = len(near)
        step = (WIDTH - GUTTER) / len(self._nodes)
        self._x = [GUTTER + step * (index + 0.5) for index in range(len(self._nodes))]
        self._step = step

    def draw(self, scenes: Sequence[Scene], caption: str) -> str:
        body: list[str] = []
        y = float(HEAD + 14)
        for number, scene in enumerate(scenes, start=1):
            drawn, y = self._scene(scene, number if len(scenes) > 1 else None, y)
            body += drawn
            y += SCENE_GAP
        lines = svg.wrap(caption, 150)
        height = y + 14 + 18 * len(lines)
        parts = [*self._background(y), *body]
        parts += [
            svg.text(GUTTER, y + 18 + 18 * index, line, size=12.5, fill="#64748b") for index, line in enumerate(lines)
        ]
        return svg.document(WIDTH, height, "Ladder of the calls: " + "; ".join(s.title for s in scenes), parts)

    def _background(self, bottom: float) -> list[str]:
        edge = self._x[self._router]
        left, right = GUTTER - 6, WIDTH - 8
        parts = [
            svg.rect(left, 8, edge - left, bottom - 8, fill="#f2f6fd", radius=10),
            svg.rect(edge, 8, right - edge, bottom - 8, fill="#fdf6ef", radius=10),
            # Covers the round corners where the two meet.
            svg.rect(edge - 12, 8, 12, bottom - 8, fill="#f2f6fd"),
            svg.rect(edge, 8, 12, bottom - 8, fill="#fdf6ef"),
            svg.text(left + 12, 28, "LAN", size=11, fill="#7f93b5", weight=700, spacing=1.2),
            svg.text(right - 12, 28, "OUTSIDE", size=11, fill="#c49a72", weight=700, spacing=1.2, anchor="end"),
        ]
        for index, node in enumerate(self._nodes):
            x, colour = self._x[index], self._colour(index)
            width = min(self._step - 18, 232)
            parts.append(svg.line(x, HEAD - 6, x, bottom - 10, stroke="#c3ccd9", width=1.4, dash="2 5"))
            parts.append(svg.rect(x - width / 2, 40, width, HEAD - 46, fill="#ffffff", stroke="#d5dce6", radius=9))
            parts.append(svg.rect(x - width / 2, 40, width, 5, fill=colour, radius=2.5))
            parts.append(svg.text(x, 66, node.name, size=16, fill=colour, weight=700, anchor="middle"))
            parts += [
                svg.text(x, 85 + 16 * row, line, size=12, fill="#334155", anchor="middle", mono=True)
                for row, line in enumerate(node.lines)
            ]
        return parts

    def _scene(self, scene: Scene, number: int | None, y: float) -> tuple[list[str], float]:
        parts = []
        x = float(GUTTER + 10)
        width = WIDTH - GUTTER - 28
        parts.append(svg.rect(x - 4, y, width, 44, fill="#ffffff", stroke="#dbe2ec", radius=8))
        if number is not None:
            parts.append(svg.circle(x + 20, y + 22, 13, fill="#1e293b"))
            parts.append(svg.text(x + 20, y + 27, str(number), size=14, fill="#ffffff", weight=700, anchor="middle"))
            x += 38
        parts.append(svg.text(x + 8, y + 20, scene.title, size=15, fill="#0f172a", weight=700))
        parts.append(svg.text(x + 8, y + 36, scene.note, size=12, fill="#64748b"))
        if scene.verdict:
            colour = "#15803d" if scene.good else "#b91c1c"
            mark = "✓ " if scene.good else "✗ "
            parts.append(
                svg.text(
                    GUTTER + width - 6,
                    y + 27,
                    mark + scene.verdict,
                    size=13,
                    fill=colour,
                    weight=600,
                    anchor="end",
                )
            )
        y += SCENE_HEAD
        rows = _rows(scene)
        start = rows[0].at if rows else 0.0
        for row in rows:
            source, destination = self._column(row.source), self._column(row.destination)
            drawn, height = (
                self._message(row, source, destination, y) if row.message else self._stream(row, source, destination, y)
            )
            parts.append(
                svg.text(
                    GUTTER - 14,
                    y + 20,
                    f"{row.at - start:.3f} s",
                    size=11.5,
                    fill="#94a3b8",
                    anchor="end",
                    mono=True,
                )
            )
            parts += drawn
            y += height
        return parts, y

    def _message(self, row: _Row, source: int, destination: int, y: float) -> tuple[list[str], float]:
        assert row.message is not None
        colour = self._colour(source)
        way = self._way(source, destination, y + 20, y + 20 + HAIRPIN_EXTRA)
        parts = [svg.arrow(way.points, colour)]
        if way.passes_router or way.turns:
            parts.append(svg.circle(way.router, way.router_y, 4, fill="#ffffff", stroke=colour))
        title = textwrap.shorten(row.message.summary, 24, placeholder=" …")
        title += f" (sent {row.repeats + 1} times)" if row.repeats else ""
        x = way.first_middle
        if way.passes_router and abs(x - way.router) < 40:
            x -= self._step / 2
        parts.append(svg.text(x, y + 14, title, size=13.5, fill=colour, weight=700, anchor="middle", halo=True))
        detail = row.message.inside
        if detail:
            x, below = way.longest
            parts.append(
                svg.text(x, below + 14, detail, size=11, fill="#64748b", anchor="middle", mono=True, halo=True)
            )
        for (x, line), port, direction in (
            (way.points[0], row.source.port, way.direction),
            (way.points[-1], row.destination.port, way.direction if way.turns else -way.direction),
        ):
            anchor = "start" if direction > 0 else "end"
            place = x + 11 * direction
            parts.append(
                svg.text(place, line - 6, f":{port}", size=11, fill="#475569", anchor=anchor, mono=True, halo=True)
            )
        room = MESSAGE_ROW if detail else BARE_MESSAGE_ROW
        return parts, room + (HAIRPIN_EXTRA if way.turns else 0)

    def _stream(self, row: _Row, source: int, destination: int, y: float) -> tuple[list[str], float]:
        assert row.seen is not None
        stream = row.seen.stream
        colour = self._colour(source)
        half = STREAM_ROW / 2 - 5
        way = self._way(source, destination, y + 3 + half, y + 3 + 3 * half)
        (start, first), (end, last) = way.points[0], way.points[-1]
        turn = way.points[1][0]
        if way.turns:
            edge = [(start, first - half), (turn, first - half), (turn, last + half)]
            edge += [(end, last + half), (end, last - half), (start, first + half)]
        else:
            edge = [(start, first - half), (end, first - half), (end, first + half), (start, first + half)]
        kind = "SRTP" if stream.secure_profile else "RTP"
        head = f"{kind} {stream.source} → {stream.destination} · {stream.codec}"
        numbers = (
            f"{row.seen.sent} sent · {stream.packets} received · {row.seen.lost} lost · "
            f"jitter {stream.jitter * 1000:.1f} ms · {stream.last_at - stream.first_at:.1f} s"
        )
        x, middle = way.longest
        clear = 4.0 * len(head) + 8
        parts = [svg.shape(svg.outline(edge), fill=colour, opacity=0.10, stroke=colour)]
        legs = [(start, turn, first), (turn, end, last)] if way.turns else [(start, end, first)]
        for begin, stop, line in legs:
            gap = (x - clear, x + clear) if line == middle else (0.0, 0.0)
            parts.append(svg.chevrons(begin, stop, line, gap, colour))
        parts.append(svg.text(x, middle - 3, head, size=12, fill=colour, weight=700, anchor="middle", halo=True))
        parts.append(svg.text(x, middle + 13, numbers, size=12, fill="#1f2937", anchor="middle", halo=True))
        if stream.secure_profile:
            parts.append(svg.padlock(x - clear + 2, middle, colour))
        return parts, STREAM_ROW + (2 * half if way.turns else 0)

    def _way(self, source: int, destination: int, line: float, back: float) -> _Way:
        """How a packet runs between two columns: straight, or to the router and back when it stands aside."""
        start, end, router = self._x[source], self._x[destination], self._x[self._router]
        same_side = (source - self._router) * (destination - self._router) > 0
        if source != destination and not same_side:
            return _Way([(start, line), (end, line)], router)
        return _Way([(start, line), (router, line), (router, back), (end, back)], router)

    def _column(self, endpoint: Endpoint) -> int:
        return next((index for index, node in enumerate(self._nodes) if node.has(endpoint)), self._router)

    def _colour(self, column: int) -> str:
        if column == self._router:
            return ROUTER_COLOUR
        return OUTSIDE_COLOUR if column > self._router else COLOURS[column % len(COLOURS)]


def _rows(scene: Scene) -> list[_Row]:
    rows: list[_Row] = []
    for entry in scene.calls:
        talking = max((m.at for m in entry.call.messages if m.method == "ACK"), default=entry.call.messages[0].at)
        found: dict[tuple[str, Endpoint, Endpoint, str | None], _Row] = {}
        seen_at: dict[tuple[str, Endpoint, Endpoint, str | None], float] = {}
        for message in entry.call.messages:
            key = (message.summary, message.source, message.destination, message.header("CSeq"))
            repeats = found[key].repeats if key in found else 0
            # On the LAN one between two hosts is seen twice, towards the router and back.
            if key in found and message.at - seen_at[key] > HAIRPIN_SECONDS:
                repeats += 1
            seen_at[key] = message.at
            at = found[key].at if key in found else message.at
            found[key] = _Row(at, message.source, message.destination, message, repeats)
        rows += found.values()
        # Media starts a breath before the ACK; the picture reads better when the handshake stays together.
        rows += [
            _Row(max(seen.stream.first_at, talking), seen.stream.source, seen.stream.destination, seen=seen)
            for seen in sorted(entry.streams, key=lambda seen: seen.stream.first_at)
        ]
    return sorted(rows, key=lambda row: row.at)
