"""What tests do and look at inside a network namespace, with the tools that a person would use."""

from __future__ import annotations

import difflib
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from dnat.dataplane import attach, tcx
from dnat.system import netns
from dnat.system.paths import BPF_DIRECTORY

DIRECTIONS: tuple[attach.Direction, ...] = ("ingress", "egress")


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
    } | _at_tcx(name)
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


def _at_tcx(name: str) -> dict[str, str]:
    """Programs at tcx, by the kernel's numbers."""
    with netns.enter(name):
        if not tcx.is_supported():
            return {}
        return {
            f"tcx {direction} of {interface}": "".join(f"{number}\n" for number in tcx.programs(index, direction))
            for index, interface in socket.if_nameindex()
            for direction in DIRECTIONS
        }


def versions(name: str, *interfaces: str) -> set[str]:
    """The programs of dnat on interfaces of a namespace, with the directory of their version."""
    pins = BPF_DIRECTORY.joinpath(name).rglob("programs-*/*")
    with netns.enter(name):
        return {
            f"{pin.parent.name}/{pin.name} on {interface}"
            for pin in pins
            for interface in interfaces
            for direction in DIRECTIONS
            if attach.runs(interface, direction, pin, f"dnat_{pin.name}:{pin.parent.name.removeprefix('programs-')}")
        }


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is not as it was, line by line."""
    lines: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, "").splitlines(), after.get(key, "").splitlines()
        lines += difflib.unified_diff(old, new, key, key, n=0, lineterm="")
    return lines
