"""The machine's clock is set while the server runs: leases stand, hosts are served, and the log says what happened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from nodes import Machine, eventually
from small import Small

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
SHORTEST = 60
"""Seconds of a lease; less is not granted."""


@pytest.fixture
def set_clock(tmp_path: Path) -> Callable[[int], dict[str, str]]:
    """Set the clock that programs see by so many seconds; returns the environment that makes them see it."""
    assert FAKETIME is not None, "apt-get install libfaketime"
    path = tmp_path / "clock"

    def set_it(seconds: int) -> dict[str, str]:
        fresh = path.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.replace(path)
        faked = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(path)}
        # Only what settimeofday(2) would change; what passes goes on passing.
        return os.environ | faked | {"FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    return set_it


def _seconds_left(machine: Machine) -> list[int]:
    return [lease["expires_in"] for lease in machine.show()["leases"]]


def _log(machine: Machine) -> str:
    return (machine.runtime / "daemon.log").read_text()


def test_a_server_whose_clock_is_set(small: Small, set_clock: Callable[[int], dict[str, str]]) -> None:
    configuration = small.configure(f'authentication = "tofu"\nlifetime = {SHORTEST}')
    small.server.dnatctl("up", "--config", configuration, env=set_clock(0))
    small.host.dnatctl("up")
    held = small.host.leases()
    for jump in (7200, -86400, 400_000_000):
        set_clock(jump)
        port = small.host.request("--ports", "1")["first"]
        small.host.dnatctl("release", str(port))
        known = [{k: v for k, v in lease.items() if k != "host"} for lease in small.server.leases()]
        assert known == held
        assert all(0 < left <= SHORTEST for left in _seconds_left(small.server))
    eventually(lambda: "clock is" in _log(small.server), "the log says so", seconds=30)
    small.server.kill()
    small.server.dnatctl("up", "--config", configuration, env=set_clock(-1000))
    assert [{k: v for k, v in lease.items() if k != "host"} for lease in small.server.leases()] == held
    assert all(0 < left <= SHORTEST for left in _seconds_left(small.server))


def test_a_server_whose_clock_is_not_that_of_its_hosts(
    small: Small, set_clock: Callable[[int], dict[str, str]]
) -> None:
    """A host that shows its key takes the server's clock, once it has heard it from there."""
    configuration = small.configure(f'authentication = "tofu"\nlifetime = {SHORTEST}')
    small.server.dnatctl("up", "--config", configuration, env=set_clock(90_000))
    small.host.dnatctl("up")
    stale = small.server.show()["pap"]["server"]["stale"]
    assert stale >= 1
    for _ in range(3):
        small.host.dnatctl("release", str(small.host.request("--ports", "1")["first"]))
    assert small.server.show()["pap"]["server"]["stale"] == stale, "it is told once"
    held = small.host.leases()
    small.server.dnatctl("down")
    small.server.dnatctl("up", "--config", configuration, env=set_clock(0))
    small.host.dnatctl("release", str(small.host.request("--ports", "1")["first"]))
    ports = [lease["first"] for lease in held]
    eventually(lambda: [lease["first"] for lease in small.host.leases()] == ports, "it has the same ports", seconds=20)
