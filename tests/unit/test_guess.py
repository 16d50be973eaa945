"""What `dnatctl init` makes of a machine's interfaces."""

from __future__ import annotations

import tomllib
from ipaddress import IPv4Interface

import pytest

from dnat import config
from dnat.errors import UsageError
from dnat.guess import Plan, check, guess, render
from dnat.system.links import Interface


def link(name: str, *addresses: str, up: bool = True) -> Interface:
    return Interface(name, 1, 1500, "02:00:00:00:00:01", up, tuple(map(IPv4Interface, addresses)))


LO = link("lo", "127.0.0.1/8")
PHONE = [LO, link("eth0", "10.66.0.11/24")]
ROUTER = [LO, link("eth0", "198.51.100.1/30"), link("eth1", "10.66.0.1/24")]
DIALLED = [LO, Interface("ppp0", 2, 1492, None, True, (IPv4Interface("198.51.100.1/32"),)), ROUTER[2]]
WITH_DOCKER = [LO, link("wlan0", "192.168.1.7/24"), link("docker0", "172.17.0.1/16")]


@pytest.mark.parametrize(
    ("known", "uplink", "given", "expected"),
    [
        (PHONE, "eth0", Plan(""), Plan("host")),
        (PHONE, None, Plan(""), Plan("host")),
        (DIALLED, "ppp0", Plan(""), Plan("router", "eth1", "ppp0", ("wan",))),
        (WITH_DOCKER, "wlan0", Plan(""), Plan("host")),
        (ROUTER, "eth0", Plan(""), Plan("router", "eth1", "eth0", ("198.51.100.1",))),
        (ROUTER, None, Plan("", wan="eth0"), Plan("router", "eth1", "eth0", ("198.51.100.1",))),
        (ROUTER, "eth0", Plan("", external=("203.0.113.9",)), Plan("router", "eth1", "eth0", ("203.0.113.9",))),
        (ROUTER, "eth0", Plan("host", server="10.66.0.2"), Plan("host", server="10.66.0.2")),
    ],
)
def test_a_guess(known: list[Interface], uplink: str | None, given: Plan, expected: Plan) -> None:
    plan = guess(known, uplink, given)
    assert plan == expected
    check(plan, known)
    written = config.parse(tomllib.loads(render(plan, known)), "the guess")
    assert ("router" in written.roles) == (plan.role == "router")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan("router", "eth1", None, ("198.51.100.1",)), "--wan"),
        (Plan("router", None, "eth0", ("198.51.100.1",)), "--lan"),
        (Plan("router", "eth1", "eth0"), "--external"),
        (Plan("router", "eth0", "eth0", ("198.51.100.1",)), "differ"),
        (Plan("router", "eth9", "eth0", ("198.51.100.1",)), "no interface called eth9; there are: lo, eth0, eth1"),
        (Plan("host", server="router"), '"router" is not an IPv4 address'),
    ],
)
def test_what_is_missing_or_wrong_is_named(plan: Plan, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(plan, ROUTER)
