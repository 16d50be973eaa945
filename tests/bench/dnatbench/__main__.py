"""``make bench``: measures everything, prints tables, writes JSON, Markdown and pictures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from dnat.dataplane import loader
from dnatbench import allocation, footprint, forwarding, host, leases, plots, programs, report, restoring, waiting


def say(what: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def measure(*, short: bool) -> dict[str, Any]:
    """Everything; ``short``: fewer rounds and scenarios, to see that it works."""
    started = time.monotonic()
    loader.ensure_bpffs()
    results: dict[str, Any] = {
        "schema": 1,
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "architecture": platform.machine()},
        "short": short,
    }
    results["programs"] = programs.run(programs.SHORT if short else programs.FULL, say)
    results["forwarding"] = forwarding.run(forwarding.SHORT if short else forwarding.FULL, say)
    results["host"] = host.run(*((2, 50, 500) if short else (25, 400, 5000)), say)
    results["memory"] = footprint.memory(say)
    results["startup"], results["daemons"] = footprint.daemons(1 if short else 7, say)
    results["leases"] = leases.run(*((2, 500) if short else (9, 3000)), say)
    results["restoring"] = restoring.run(3 if short else 9, say)
    results["waiting"] = waiting.run(*((1, 20) if short else (3, 300)), say)
    results["allocation"] = allocation.run(allocation.SHORT if short else allocation.FULL, say)
    results["seconds"] = round(time.monotonic() - started)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer rounds, to see that it works")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("benchmarks need root: they load BPF programs", file=sys.stderr)
        return 4
    results = measure(short=arguments.short)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    tables = report.tables(results)
    (arguments.output / "results.md").write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")
    plots.draw(results, arguments.output)
    report.show(tables)
    print(f"{results['seconds']} s; {arguments.output}/ has results.json, results.md and the pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
