"""What tests do and look at inside a network namespace, with the tools that a person would use."""

from __future__ import annotations

import difflib
import json
import os
import subprocess
from pathlib import Path

import pytest

from dnat.system import netns


def run(name: str, *argv: str, check: bool = True) -> str:
    """Run a program in a namespace; returns what it printed."""
    with netns.enter(name):
        result = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    if check and result.returncode != 0:
        pytest.fail(f"{name}: {' '.join(argv)} exited {result.returncode}: {result.stdout}{result.stderr}")
    return result.stdout


def ip(name: str, command: str) -> str:
    """Run iproute2's ``ip`` in a namespace; several commands may be separated by semicolons."""
    return "".join(run(name, "ip", *one.split()) for one in command.split(";"))


def snapshot(name: str) -> dict[str, str]:
    """All that dnat may change in a namespace, as other programs see it."""
    taken = {
        command: run(name, *command.split())
        for command in (
            "ip -d -o addr show",
            "ip -d route show table all",
            "ip -d rule show",
            "nft list ruleset",
            "tc -d qdisc show",
        )
    }
    for link in json.loads(run(name, "ip", "-j", "link", "show")):
        for direction in ("ingress", "egress"):
            command = f"tc filter show dev {link['ifname']} {direction}"
            taken[command] = run(name, *command.split(), check=False)
    with netns.enter(name):
        for path in sorted(Path("/proc/sys/net/ipv4").rglob("*")):
            if path.is_file() and os.access(path, os.R_OK) and path.stat().st_mode & 0o222:
                try:
                    taken[str(path)] = path.read_text(encoding="ascii")
                except OSError:
                    continue
    return taken


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is not as it was, line by line."""
    lines: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, "").splitlines(), after.get(key, "").splitlines()
        lines += difflib.unified_diff(old, new, key, key, n=0, lineterm="")
    return lines
