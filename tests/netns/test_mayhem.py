"""Every daemon is killed at random moments: no call loses a packet, no port has two owners, no lease is lost.

``make soak`` kills hundreds of times; DNAT_SOAK_SEED repeats a run, as far as time can be repeated.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from mayhem import Asker, Mayhem, Victim, daemon, member
from nodes import Lab, eventually
from test_crashes import steady_streams

from dnat.lab import builder, control
from dnat.lab.topology import Topology

pytestmark = pytest.mark.flaky(reruns=0)
"""What a moment that nobody chose brings to light counts at the first time."""

DEATHS = int(os.environ.get("DNAT_SOAK_DEATHS", "8"))
SEED = int(os.environ.get("DNAT_SOAK_SEED", "20261125"))
HOSTS = ("phone1", "phone2", "sip")


def _lab(suffix: str, **options: Any) -> Iterator[Lab]:
    topology = Topology(prefix=f"dt{os.getpid()}{suffix}", authentication="tofu", **options)
    try:
        control.up(topology, lambda _: None)
        yield Lab(topology)
    finally:
        builder.destroy(topology.prefix)


@pytest.fixture
def keyed_lab(_root: None) -> Iterator[Lab]:
    """A lab with a SIP proxy whose hosts have keys."""
    yield from _lab("m", sip="proxy")


@pytest.fixture
def wide_lab(_root: None) -> Iterator[Lab]:
    """Two routers, two servers apart from them, three members of etcd; hosts have keys."""
    yield from _lab("v", routers=2, servers=2)


def _play(lab: Lab, victims: Sequence[Victim], servers: Sequence[str], routers: Sequence[str], deaths: int) -> None:
    askers = [Asker(lab[name], SEED + number) for number, name in enumerate(HOSTS)]
    with steady_streams(lab) as streams:
        mayhem = Mayhem(
            victims=victims,
            servers=[lab[name] for name in servers],
            routers=[lab[name] for name in routers],
            askers=askers,
            seed=SEED,
            flows=lambda: streams.received,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        with askers[0], askers[1], askers[2]:
            mayhem.run(deaths)
            eventually(lambda: all(asker.answers for asker in askers), "everybody was served", seconds=60)
    assert streams.lost() == []
    assert mayhem.deaths >= deaths


def test_daemons_die_at_any_moment(keyed_lab: Lab) -> None:
    victims = [daemon(keyed_lab[name]) for name in ("router", *HOSTS)]
    _play(keyed_lab, victims, ["router"], ["router"], DEATHS)


def test_servers_routers_and_members_of_the_store_die_at_any_moment(wide_lab: Lab) -> None:
    daemons = ("server", "server2", "router", "router2", "phone1", "phone2")
    victims = [daemon(wide_lab[name]) for name in daemons]
    victims += [member(wide_lab, name) for name in ("etcd1", "etcd2", "etcd3")]
    _play(wide_lab, victims, ["server", "server2"], ["router", "router2"], DEATHS // 4)
