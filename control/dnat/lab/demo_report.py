"""What the demo shows: tables on the terminal, pictures in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from dnat.capture.ladder import LadderNode, Scene, SceneCall, draw_ladder
from dnat.lab.demo_calls import JudgedCall, Round
from dnat.lab.demo_stage import DemoResult
from dnat.lab.phone import PhoneSettings
from dnat.types import PortRange

CAPTION = (
    "Seconds since the first message, as captured at the caller. RTP: packets that left the sender's "
    "interface, packets that reached the receiver's. A circle marks where the router sent a packet on by its "
    "destination port; it rewrites nothing but the TTL and keeps no state about calls."
)


def write_pictures(result: DemoResult, output: Path) -> list[Path]:
    """``calls.svg`` with all calls, ``call-N.svg`` for each round; returns the paths, that of all first."""
    near = [_node(settings) for settings in result.stage.near]
    far = [_node(result.stage.far)]
    router = LadderNode("router", ("forwards by port,", "knows no calls"))
    scenes = [_scene(result, round_, calls) for round_, calls in result.rounds]
    pictures = [(output / "calls.svg", scenes)]
    pictures += [(output / f"call-{number}.svg", [scene]) for number, scene in enumerate(scenes, start=1)]
    for path, shown in pictures:
        path.write_text(draw_ladder(near, router, far, shown, CAPTION), encoding="utf-8")
    return [path for path, _ in pictures]


def print_report(result: DemoResult, pictures: Sequence[Path], output: Path, console: Console) -> None:
    """The account of the demo for people."""
    console.print()
    console.print(_leases(result))
    console.print()
    _print_calls(result, console)
    console.print()
    addresses = ", ".join(str(address) for address in result.stage.leased)
    if not result.strangers:
        console.print(f"[green]✓[/] On the WAN link, packets, SIP and SDP show {addresses} and leased ports only.")
    console.print(f"Pictures: [bold]{_short(pictures[0])}[/], one per call beside it")
    console.print(f"Captures: {', '.join(_short(path) for path in result.captures)}")
    console.print(f"What each phone heard, and its log: {_short(output / 'phones')}")
    console.print()
    if result.problems:
        console.print("[red]✗ Not all of it worked:[/]")
        for problem in result.problems:
            console.print(f"  [red]•[/] {escape(problem)}")
    else:
        count = sum(len(calls) for _, calls in result.rounds)
        console.print(f"[green]✓ All {count} calls worked, both ways, without one lost packet.[/]")


def _leases(result: DemoResult) -> Table:
    table = _table("Who leased what")
    for name in ("host", "combination network address", "SIP", "RTP and RTCP", "plays"):
        table.add_column(name)
    for settings in result.stage.near:
        ports = PortRange(settings.sip_port, settings.rtp.last)
        table.add_row(
            settings.name,
            f"{settings.address}:{ports}",
            str(settings.sip_port),
            str(settings.rtp),
            f"{settings.tone} Hz",
        )
    far = result.stage.far
    table.add_row(far.name, f"{far.address} [dim](its own)[/]", str(far.sip_port), str(far.rtp), f"{far.tone} Hz")
    return table


def _print_calls(result: DemoResult, console: Console) -> None:
    console.print("[bold]Calls[/]")
    for number, (round_, calls) in enumerate(result.rounds):
        good = not any(judged.problems for judged in calls)
        console.print(f"{'[green]✓[/]' if good else '[red]✗[/]'} {round_.title}")
        # A table of its own for each round, all with the same widths: headings would not fit into a column.
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=not number)
        for name, width, justify in _CALL_COLUMNS:
            table.add_column(name, width=width, justify=justify)
        for judged in calls:
            _add_ways(table, judged)
        console.print(Padding(table, (0, 0, 0, 2), expand=False))
    if suites := sorted({suite for _, calls in result.rounds for judged in calls for suite in _suites(judged)}):
        console.print(f"[dim]SRTP: {', '.join(suites)}, keys exchanged by the phones themselves (SDES)[/]")


_CALL_COLUMNS: tuple[tuple[str, int, JustifyMethod], ...] = (
    ("packets from and to port", 27, "left"),
    ("sent", 4, "right"),
    ("received", 8, "right"),
    ("lost", 4, "right"),
    ("codec", 5, "left"),
    ("crypto", 6, "left"),
    ("heard", 12, "left"),
)
"""Heading and width; together they fit into 80 columns."""


def _add_ways(table: Table, judged: JudgedCall) -> None:
    made, plan = judged.made, judged.made.plan
    ways = (
        (plan.caller, plan.callee, judged.there, made.callee, made.heard_by_callee),
        (plan.callee, plan.caller, judged.back, made.caller, made.heard_by_caller),
    )
    for source, destination, seen, report, heard in ways:
        way, counts = f"{source} → {destination}", ("–", "–", "–")
        if seen is not None:
            way = f"{source}:{seen.stream.source.port} → {destination}:{seen.stream.destination.port}"
            counts = (str(seen.sent), str(seen.stream.packets), str(seen.lost))
        table.add_row(
            way,
            *counts,
            report.codec.partition(" ")[0],
            "SRTP" if report.encryption else "none",
            f"{heard.tone} Hz {heard.seconds:.1f} s",
        )


def _suites(judged: JudgedCall) -> list[str]:
    return [report.encryption for report in (judged.made.caller, judged.made.callee) if report.encryption]


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)


def _short(path: Path) -> str:
    """Relative to here when it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _node(settings: PhoneSettings) -> LadderNode:
    ports = PortRange(settings.sip_port, settings.rtp.last)
    if settings.interface == "lo":
        return LadderNode(
            settings.name,
            (str(settings.address), f"ports {ports.first}–{ports.last}"),
            ((settings.address, ports),),
        )
    return LadderNode(settings.name, (str(settings.address), "its own address"), ((settings.address, None),))


def _scene(result: DemoResult, round_: Round, calls: Sequence[JudgedCall]) -> Scene:
    good = not any(judged.problems for judged in calls)
    shown = tuple(SceneCall(judged.call, judged.streams) for judged in calls if judged.call.messages)
    verdict = "audio heard at every end" if good else "something went wrong"
    return Scene(round_.title, round_.note, shown, verdict, good)
