"""``make load``: 200 calls at once and 500 calls a second through the redirect server; what a call costs the router."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dnatbench.report import Table, show

from dnat.dataplane import loader
from dnatload import calls, cost, relay

FULL = (
    calls.Load("500 calls a second", calls=10_000, rate=500, hold_ms=1000),
    calls.Load("200 calls at once, with sound", calls=200, rate=40, hold_ms=15_000, media=True),
)
SHORT = (
    calls.Load("500 calls a second", calls=1000, rate=500, hold_ms=500),
    calls.Load("60 calls at once, with sound", calls=60, rate=40, hold_ms=3000, media=True),
)


def say(what: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make load", description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer calls, to see that it works")
    parser.add_argument("--output", type=Path, default=Path("load-output"))
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("load tests need root: they make a lab of network namespaces", file=sys.stderr)
        return 4
    short = arguments.short
    loader.ensure_bpffs()
    say("what a voice packet costs a router")
    costs = list(cost.run(2 if short else 9, 50_000 if short else 300_000))
    with tempfile.TemporaryDirectory(prefix="dnat-load-") as directory, calls.lab(f"load{os.getpid()}") as lab:
        outcomes = []
        for load in SHORT if short else FULL:
            say(load.label)
            outcomes.append(calls.run(lab, load, Path(directory)))
        say("the same sound through rtpengine")
        relayed = relay.run(lab, 20 if short else 200, 2.0 if short else 10.0)
    tables = (_calls(outcomes), _costs(costs, relayed))
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release()},
        "short": short,
        "calls": [asdict(outcome) for outcome in outcomes],
        "router": [asdict(one) | {"call_us": one.call_us} for one in costs],
        "rtpengine": asdict(relayed),
    }
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.output / "results.md").write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")
    show(tables)
    failed = sum(outcome.failed for outcome in outcomes)
    print(f"{failed or 'no'} failed calls; {arguments.output}/ has results.json and results.md")
    return 1 if failed else 0


def _calls(outcomes: Sequence[calls.Outcome]) -> Table:
    columns = ("load, through the redirect server", "calls", "failed", "at once", "calls/s", "sent again", "set-up ms")
    columns += ("voice packets", "not back", "dropped by dnat", "SIP server ms/call", "CPUs busy")
    rows = []
    for each in outcomes:
        voice = (f"{each.voice:,}", str(each.missing)) if each.load.media else ("", "")
        rows.append(
            (
                each.load.label, f"{each.succeeded + each.failed:,}", str(each.failed), str(each.peak),
                f"{each.rate:.0f}", str(each.retransmissions), f"{each.setup_ms:.0f}", *voice,
                str(each.dropped), f"{each.server_ms:.2f}", f"{each.busy:.2f}",
            )
        )  # fmt: skip
    return Table("Calls", columns, tuple(rows))


def _costs(costs: Sequence[cost.Cost], relayed: relay.Relayed) -> Table:
    rows = [(one.router, one.packet_us, one.call_us) for one in costs]
    rows.append(("rtpengine (its process alone)", relayed.cpu_us, relayed.cpu_us * 2 * cost.PACKETS_PER_SECOND))
    reference = rows[-1][2]
    return Table(
        "CPU of the router for a call, sound both ways",
        ("router", "us/packet", "us for a second of a call", "calls a core can carry", "rtpengine / this"),
        tuple(
            (name, f"{packet:.2f}", f"{call:.0f}", f"{1e6 / call:,.0f}", f"{reference / call:.1f}")
            for name, packet, call in rows
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
