"""How long leases last on real machines: renewed by themselves, ended when nobody renews, held back afterwards."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

import pytest
from nodes import Lab, Node, eventually

from dnat.lab import builder
from dnat.lab.topology import Topology

LIFETIME = 60
"""Seconds, the least that a server grants."""
HOLD = 120
"""Seconds, the default."""


@pytest.fixture(scope="module")
def lab(_root: None) -> Iterator[Lab]:
    """A lab whose leases are short."""
    topology = Topology(prefix=f"dt{os.getpid()}l", phones=2)
    try:
        builder.build(topology)
        lab = Lab(topology)
        path = lab["router"].dnat_toml
        path.write_text(path.read_text().replace("[server]", f"[server]\nlifetime = {LIFETIME}"))
        for name in ("router", "phone1", "phone2"):
            lab[name].dnatctl("up")
        yield lab
    finally:
        builder.destroy(topology.prefix)


def leases_of(lab: Lab, node: Node) -> dict[str, int]:
    """What the server knows of a host: seconds left, by range and purpose."""
    return {
        f"{each['first']}-{each['last']} {each['purpose']}": each["expires_in"]
        for each in lab["router"].show()["leases"]
        if each["host"] == node.address
    }


def test_freed_ports_are_held_back_also_across_a_crash(lab: Lab) -> None:
    phone, other, router = lab["phone1"], lab["phone2"], lab["router"]
    phone.request("--port", "5070")
    phone.dnatctl("release", "5070")
    router.kill()
    router.dnatctl("up")
    refused = other.dnatctl("request", "--port", "5070", code=3).stderr
    left = re.search(r"try again in (\d+) s", refused)
    assert left is not None and HOLD - 60 < int(left[1]) <= HOLD
    assert phone.request("--port", "5070")["first"] == 5070
    phone.dnatctl("release", "5070")


def test_leases_are_renewed_while_their_host_lives_and_end_when_it_does_not(lab: Lab) -> None:
    """phone1 lives, phone2 falls silent; its ports are held back for it, and it gets them again."""
    phone, other, router = lab["phone1"], lab["phone2"], lab["router"]
    silent = leases_of(lab, other)
    first = int(next(iter(silent)).partition("-")[0])
    other.kill()
    died = time.monotonic()
    least: dict[str, int] = {}

    def renewed() -> bool:
        grew = False
        for name, left in leases_of(lab, phone).items():
            grew = grew or left > least.get(name, LIFETIME) + 5
            least[name] = min(left, least.get(name, LIFETIME))
        return grew

    eventually(renewed, "phone1 has renewed", LIFETIME)
    # At half-life, more or less a tenth of it, and what a busy machine adds.
    assert LIFETIME * 0.25 <= min(least.values()) <= LIFETIME * 0.56
    eventually(lambda: not leases_of(lab, other), "the silent host's leases have ended", 2 * LIFETIME)
    assert time.monotonic() - died > LIFETIME / 2
    assert len(leases_of(lab, phone)) == 2
    refused = phone.dnatctl("request", "--port", str(first), code=3).stderr
    assert "try again in" in refused
    other.dnatctl("up")
    assert leases_of(lab, other).keys() == silent.keys()
    assert router.show()["pap"]["server"]["renew-success"] >= 1
