"""A flood of questions, true or forged, takes neither the pool nor the time of others; measured on real daemons.

The honest host's questions and renewals are all of one kind to the server: what holds for the one holds for the other.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nodes import Machine, eventually
from small import Small

FLOOD = Path(__file__).with_name("flood.py")
SECONDS = 4
LIFETIME = 60
"""Seconds; the shortest that is granted. Hosts renew with half of it left."""
QUOTA = 256


def _counted(server: Machine, name: str) -> int:
    return int(server.call("show")["pap"]["server"].get(name, 0))


@pytest.mark.parametrize(
    ("kind", "counter"),
    [("forged", "unverified-above-rate"), ("guessed", "bad-tag"), ("true", "host-above-rate")],
)
def test_others_are_served_in_time(small: Small, kind: str, counter: str) -> None:
    small.serve(f'authentication = "tofu"\nlifetime = {LIFETIME}\nports_per_host = {QUOTA}')
    small.host.dnatctl("up")
    small.other.dnatctl("up")
    held, before = small.host.leases(), _counted(small.server, counter)
    status = json.loads(small.other.dnatctl("status", "-o", "json").stdout)
    key = f"/var/lib/dnat/{small.other.namespace}/key"
    if kind == "guessed":
        key = json.loads(small.host.dnatctl("key", "list", "-o", "json").stdout)["own"]
    argv = [kind, small.server.address, key, status["host_id"], small.other.address, str(SECONDS)]
    waits: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(small.other.run, sys.executable, str(FLOOD), *argv)
        eventually(lambda: _counted(small.server, counter) > before + 1000, "the flood is on", seconds=20)
        while not flooding.done():
            started = time.monotonic()
            lease = small.host.call("request", count=1)["lease"]
            waits.append(time.monotonic() - started)
            small.host.call("release", ids=[lease["id"]])
        flooding.result()
    print(f"{kind}: {len(waits)} questions beside a flood, the longest waited {max(waits):.3f} s")
    assert max(waits) < LIFETIME / 4, "an answer comes long before a lease ends"
    assert small.host.leases() == held
    of_flooder = [each for each in small.server.leases() if each["host"] == small.other.address]
    assert sum(each["last"] - each["first"] + 1 for each in of_flooder) <= QUOTA
    strangers = {each["host"] for each in small.server.leases()} - {small.host.address, small.other.address}
    assert strangers == set()
