"""The contrast as a table and as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from dnatcontrast.ways import PLAIN, WAYS

_COLOURS = ("#c0392b", "#e59866", "#8e44ad", "#2471a3")
MAX_LOST = 0.01
_KINDS = (("out", False), ("in", False), ("out", True), ("in", True))


def _calls(results: dict[str, Any], way: str) -> list[dict[str, Any]]:
    return [call for call in results["calls"] if call["way"] == way]


def _audio(results: dict[str, Any], way: str, direction: str, encrypted: bool) -> str:
    found = [
        call["audio"]
        for call in _calls(results, way)
        if (call["direction"], call["encrypted"]) == (direction, encrypted)
    ]
    return found[0] if len(set(found)) == 1 else ", ".join(sorted(set(found)))


def _setup(results: dict[str, Any], way: str, encrypted: bool) -> str:
    found = [c["setup"] for c in _calls(results, way) if c["encrypted"] is encrypted and c["setup"] is not None]
    return f"{1000 * median(found):.0f} ms" if found else "–"


def delay(results: dict[str, Any], way: str) -> float:
    """Microseconds from interface to interface, median over the calls."""
    return median(call["delay_us"]["median"] for call in _calls(results, way) if "delay_us" in call)


def _cost(results: dict[str, Any], way: str) -> dict[str, float] | None:
    """Of a call, in millionths of a core; None where so many packets were lost that it says nothing."""
    row = next(row for row in results["cost"] if row["way"] == way)
    if row["lost"] > MAX_LOST * row["sent"]:
        return None
    cost: dict[str, float] = row["microcores_per_call"]
    return cost


def _of_cost(results: dict[str, Any], way: str, form: Callable[[float], str]) -> str:
    cost = _cost(results, way)
    return form(cost["median"]) if cost else "–"


def markdown(results: dict[str, Any]) -> str:
    """A column for each way, and one for plain routing."""
    ways = [PLAIN, *WAYS]
    rows: list[tuple[str, Callable[[str], str]]] = [
        (
            f"{'outgoing' if direction == 'out' else 'incoming'} call, {'TLS and SRTP' if encrypted else 'in clear'}",
            lambda way, direction=direction, encrypted=encrypted: _audio(results, way, direction, encrypted),
        )
        for direction, encrypted in _KINDS
    ]
    rows.append(("set-up, in clear", lambda way: _setup(results, way, False)))
    rows.append(("set-up, TLS", lambda way: _setup(results, way, True)))
    rows.append(("added delay of a media packet", lambda way: f"{delay(results, way) - delay(results, PLAIN):+.0f} µs"))
    if results["cost"]:
        for name, form in (
            ("CPU of the router for a call", lambda cost: f"{cost / 10_000:.3f} %"),
            ("calls for each core", lambda cost: f"{1e6 / cost:,.0f}"),
        ):
            rows.append((name, lambda way, form=form: _of_cost(results, way, form)))
    lines = [f"| | {' | '.join(ways)} |", "| --- |" + " --- |" * len(ways)]
    lines += [f"| {name} | {' | '.join(value(way) for way in ways)} |" for name, value in rows]
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], directory: Path) -> None:
    """``contrast.svg`` and ``contrast.png``."""
    import matplotlib as mpl

    mpl.use("Agg")
    # The same results give the same file.
    mpl.rcParams.update({"svg.hashsalt": "dnat", "font.size": 9, "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    panels = 3 if results["cost"] else 2
    figure, axes = plt.subplots(1, panels, figsize=(3.6 * panels, 3.0), layout="constrained", sharey=True)
    heard = [
        sum(c["hears_inside"] + c["hears_outside"] for c in _calls(results, way)) / (2 * len(_calls(results, way)))
        for way in WAYS
    ]
    axes[0].barh(WAYS, [100 * share for share in heard], color=_COLOURS)
    axes[0].set_xlim(0, 100)
    axes[0].set_title("voices that arrived, %")
    axes[0].invert_yaxis()
    axes[1].barh(WAYS, [max(0.0, delay(results, way) - delay(results, PLAIN)) for way in WAYS], color=_COLOURS)
    axes[1].set_title("added delay of a packet, µs")
    if results["cost"]:
        nothing = {"median": 0.0, "low": 0.0, "high": 0.0}
        costs = [_cost(results, way) or nothing for way in WAYS]
        errors = [[c["median"] - c["low"] for c in costs], [c["high"] - c["median"] for c in costs]]
        axes[2].barh(WAYS, [c["median"] for c in costs], xerr=errors, color=_COLOURS, ecolor="#555555")
        if plain := _cost(results, PLAIN):
            axes[2].axvline(plain["median"], color="#7f8c8d", linestyle="--", linewidth=1)
        axes[2].set_title("router's CPU for a call, µs each second")
    for axis in axes:
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(directory / "contrast.svg", metadata={"Date": None})
    figure.savefig(directory / "contrast.png", dpi=120)
    plt.close(figure)
