"""``make demo-contrast``: the same calls through masquerading, an ALG, a relay and dnat; a table and a picture."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dnatcontrast import calls, cost, report
from dnatcontrast.ways import PLAIN, WAYS, standing


def measure(output: Path, repeats: int, rounds: int) -> dict[str, Any]:
    """Everything."""
    outcomes = []
    with ExitStack() as stack:
        ways = {}
        for number, name in enumerate((PLAIN, *WAYS)):
            print(f"  building {name}", file=sys.stderr, flush=True)
            directory = output / f"{number}"
            prefix = f"dc{os.getpid()}{number}"
            ways[name] = stack.enter_context(standing(name, prefix, directory))
        for repeat in range(repeats):
            # Back and forth: a machine that changes its speed changes it for all.
            order = list(enumerate(ways.items()))
            for number, (name, way) in order if repeat % 2 == 0 else reversed(order):
                print(f"  calls through {name}, {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
                outcomes += calls.make(way, output / f"{number}")
        print("  what a packet costs", file=sys.stderr, flush=True)
        costs = cost.measure(ways, rounds) if rounds else []
    return {
        "schema": 1,
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "architecture": platform.machine()},
        "calls": [outcome.document() for outcome in outcomes],
        "cost": costs,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo-contrast", description=__doc__)
    parser.add_argument("--repeats", type=int, default=2, help="how often each call is made")
    parser.add_argument("--rounds", type=int, default=15, help="of measuring the CPU; 0: none")
    parser.add_argument("--output", type=Path, default=Path("contrast-output"))
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("networks need root", file=sys.stderr)
        return 4
    output = arguments.output.absolute()
    results = measure(output, arguments.repeats, arguments.rounds)
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = report.markdown(results)
    (output / "contrast.md").write_text(table, encoding="utf-8")
    report.draw(results, output)
    print(table)
    print(f"{arguments.output}/ has results.json, contrast.md, contrast.svg and contrast.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
