"""The few SVG elements that the ladder is drawn with. Coordinates are pixels, colours CSS."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from xml.sax.saxutils import escape

SANS = "Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"

Point = tuple[float, float]


def document(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """A whole SVG file."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" font-family="{SANS}">'
    )
    ground = rect(0, 0, width, height, fill="#ffffff")
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, *parts, "</svg>", ""])


def text(
    x: float,
    y: float,
    content: str,
    *,
    size: float,
    fill: str,
    weight: int = 400,
    anchor: str = "start",
    mono: bool = False,
    halo: bool = False,
    spacing: float = 0.0,
) -> str:
    """One line of text; a halo keeps it readable over lines."""
    shape = (
        f'x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" font-weight="{weight}" text-anchor="{anchor}"'
        + (f' font-family="{MONO}"' if mono else "")
        + (f' letter-spacing="{spacing:g}"' if spacing else "")
    )
    written = f'<text {shape} fill="{fill}">{escape(content)}</text>'
    if not halo:
        return written
    # An element of its own below the text: not everything that draws SVG knows paint-order.
    ring = 'fill="none" stroke="#ffffff" stroke-width="3.5" stroke-linejoin="round" aria-hidden="true"'
    return f"<text {shape} {ring}>{escape(content)}</text>{written}"


def rect(x: float, y: float, width: float, height: float, *, fill: str, stroke: str = "none", radius: float = 0) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" '
        f'fill="{fill}" stroke="{stroke}"/>'
    )


def circle(x: float, y: float, radius: float, *, fill: str, stroke: str = "none") -> str:
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"'
    return f'<circle {place} fill="{fill}" stroke="{stroke}" stroke-width="1.8"/>'


def line(x1: float, y1: float, x2: float, y2: float, *, stroke: str, width: float, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}" stroke-linecap="round"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" '
        f'stroke-width="{width:g}"{dashes}/>'
    )


def arrow(points: Sequence[Point], colour: str) -> str:
    """A line along the points with a head at its end, which must be reached horizontally."""
    (before, _), (tip, y) = points[-2:]
    direction = 1 if tip > before else -1
    trail = [*points[:-1], (tip - 8 * direction, y)]
    path = " ".join(f"{'L' if index else 'M'}{px:.1f} {py:.1f}" for index, (px, py) in enumerate(trail))
    back = tip - 11 * direction
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.9" stroke-linejoin="round"/>'
        f'<path d="M{tip:.1f} {y:.1f}L{back:.1f} {y - 5.5:.1f}L{back:.1f} {y + 5.5:.1f}Z" fill="{colour}"/>'
    )


def outline(points: Sequence[Point]) -> str:
    """Path data of a closed polygon."""
    return " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points)) + "Z"


def shape(path: str, *, fill: str, opacity: float, stroke: str) -> str:
    return (
        f'<path d="{path}" fill="{fill}" fill-opacity="{opacity:g}" stroke="{stroke}" stroke-opacity="0.55" '
        f'stroke-linejoin="round"/>'
    )


def chevrons(start: float, end: float, y: float, gap: tuple[float, float], colour: str) -> str:
    """A row of small arrow heads from ``start`` to ``end``, none between the two ends of ``gap``."""
    direction = 1 if end > start else -1
    low, high = sorted((start, end))
    path = []
    x = low + 16
    while x <= high - 12:
        if not gap[0] < x < gap[1]:
            path.append(f"M{x - 3 * direction:.1f} {y - 4.5:.1f}l{5 * direction} 4.5l{-5 * direction} 4.5")
        x += 26
    return f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-opacity="0.35" stroke-width="1.8"/>'


def padlock(x: float, y: float, colour: str) -> str:
    """A small closed padlock, its middle at (x, y)."""
    bow = f"M{x - 4:.1f} {y - 1:.1f}v-4a4 4 0 0 1 8 0v4"
    return f'<path d="{bow}" fill="none" stroke="{colour}" stroke-width="2"/>' + rect(
        x - 6.5, y - 1, 13, 10, fill=colour, radius=2
    )


def wrap(content: str, columns: int) -> list[str]:
    """Lines of at most so many characters."""
    return textwrap.wrap(content, columns)
