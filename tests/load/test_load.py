"""Load in short form: no call fails and dnat drops nothing. How fast it is is not judged here, for machines differ."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PATHS = [HERE, *(HERE.parent / name for name in ("bench", "bpf", "netns"))]


def test_a_short_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dnatload", "--short", "--output", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={"PYTHONPATH": ":".join(map(str, PATHS)), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    for outcome in results["calls"]:
        assert (outcome["succeeded"], outcome["failed"], outcome["dropped"]) == (outcome["load"]["calls"], 0, 0)
    assert results["calls"][-1]["peak"] == 60
    assert results["calls"][-1]["voice"] > 60 * 3 * 50 * 0.9
    assert {row["router"] for row in results["router"]} == {"plain forwarding", "dnat at TC", "dnat at XDP"}
    assert results["rtpengine"]["packets"] > 0
