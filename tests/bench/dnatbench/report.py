"""Results as tables for people: on the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    """The first is text, all others are numbers."""
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", _line(self.columns), _line(("---", *["---:"] * (len(self.columns) - 1)))]
        return "\n".join([*lines, *map(_line, self.rows), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(summary: dict[str, float], digits: int) -> str:
    return f"{summary['median']:.{digits}f} ({summary['low']:.{digits}f}–{summary['high']:.{digits}f})"


def tables(results: dict[str, Any]) -> list[Table]:
    """All tables of a run; medians, with quartiles in brackets."""
    found = list(_forwarding(results["forwarding"]))
    found.append(
        Table(
            "Each program by itself",
            ("program", "ns beyond an empty one"),
            tuple((row["program"], _spread(row["ns"], 0)) for row in results["programs"]),
        )
    )
    found.append(
        Table(
            "A host's TCP",
            ("measure", "value", "of no data plane", "of empty programs"),
            tuple(
                (
                    f"{row['measure']}: {row['host']}",
                    *(_spread(row[key], 3) for key in ("value", "of_none", "of_empty")),
                )
                for row in results["host"]
            ),
        )
    )
    found.append(
        Table(
            "Memory of a router",
            ("what", "octets"),
            tuple((r["what"], f"{r['octets']:,.0f}") for r in results["memory"]),
        )
    )
    found.append(
        Table(
            "Memory of daemons", ("what", "MB"), tuple((r["what"], f"{r['megabytes']:.1f}") for r in results["daemons"])
        )
    )
    found.append(
        Table(
            "From `dnatctl up` to the first answer",
            ("start", "seconds"),
            tuple((row["what"], _spread(row["seconds"], 2)) for row in results["startup"]),
        )
    )
    found.append(
        Table(
            "Durable leases, in one process",
            ("who", "leases/s", "of the store alone"),
            tuple(
                (row["what"], _spread(row["per_second"], 0), _spread(row["of_store"], 2)) for row in results["leases"]
            ),
        )
    )
    found.append(
        Table(
            "A router starts: 65,536 leased ports from the store into its maps",
            ("store", "seconds", "of which reading", "goal"),
            tuple(
                (row["what"], _spread(row["seconds"], 2), _spread(row["reading"], 2), f"< {row['goal']:.0f}")
                for row in results["restoring"]
            ),
        )
    )
    percentiles = tuple(results["waiting"][0]["ms"])
    found.append(
        Table(
            "Until a grant is durable and routers have its owner, ms",
            ("store, routers", *(f"{each} %" for each in percentiles)),
            tuple((row["what"], *(_spread(row["ms"][each], 2) for each in percentiles)) for row in results["waiting"]),
        )
    )
    found += _allocation(results["allocation"])
    return found


def _allocation(rows: Sequence[dict[str, Any]]) -> Iterable[Table]:
    yield Table(
        "Leases over a network",
        ("server", "leases/s", "of Kea", "CPU µs/question"),
        tuple(
            (row["what"], _spread(row["per_second"], 0), _spread(row["of_kea"], 2), _spread(row["cpu_us"], 0))
            for row in rows
        ),
    )
    percentiles = tuple(rows[0]["renewal_ms"])
    yield Table(
        "Renewals at half of that rate, ms",
        ("server", *(f"{each} %" for each in percentiles)),
        tuple((row["what"], *(_spread(row["renewal_ms"][each], 2) for each in percentiles)) for row in rows),
    )


def _forwarding(rows: Iterable[dict[str, Any]]) -> Iterable[Table]:
    groups: dict[tuple[str, int, int, bool], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["direction"], row["octets"], row["flows"], row["new"]), []).append(row)
    for (direction, octets, flows, new), group in groups.items():
        way = "inbound" if direction == "in" else "outbound"
        kind = "every packet a new flow" if new else f"{flows:,} flow{'s' if flows > 1 else ''}"
        columns = ("router", "ns/packet", "net", "Mpps", "net of forwarding", "net of the floor", "nftables ÷ this")
        yield Table(f"Router, {way}, {octets} octets, {kind}", columns, tuple(_router(row) for row in group))


def _router(row: dict[str, Any]) -> tuple[str, ...]:
    ratios = tuple(
        _spread(row[key], 2) if key in row else "" for key in ("of_forwarding", "of_floor", "nftables_of_this")
    )
    return row["router"], _spread(row["ns"], 0), _spread(row["net_ns"], 0), f"{row['mpps']:.2f}", *ratios


def show(found: Iterable[Table]) -> None:
    """Print to the terminal."""
    from rich.console import Console
    from rich.table import Table as Drawn

    console = Console(width=160)
    for table in found:
        drawn = Drawn(title=table.title, title_justify="left", box=None, header_style="dim", pad_edge=False)
        for number, column in enumerate(table.columns):
            drawn.add_column(column, justify="right" if number else "left")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn, "")
