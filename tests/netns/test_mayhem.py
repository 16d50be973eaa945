"""Every daemon is killed at random moments: no call loses a packet, no port has two owners, no lease is lost.

``make soak`` kills hundreds of times; DNAT_SOAK_SEED repeats a run, as far as time can be repeated.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from mayhem import Asker, Mayhem, daemon
from nodes import Lab, eventually
from test_crashes import steady_streams

from dnat.lab import builder, control
from dnat.lab.topology import Topology

DEATHS = int(os.environ.get("DNAT_SOAK_DEATHS", "8"))
SEED = int(os.environ.get("DNAT_SOAK_SEED", "20261125"))
HOSTS = ("phone1", "phone2", "sip")


@pytest.fixture
def keyed_lab(_root: None) -> Iterator[Lab]:
    """A lab with a SIP proxy whose hosts have keys."""
    topology = Topology(prefix=f"dt{os.getpid()}m", authentication="tofu", sip="proxy")
    try:
        builder.build(topology)
        control.up(topology, lambda _: None)
        yield Lab(topology)
    finally:
        builder.destroy(topology.prefix)


def test_daemons_die_at_any_moment(keyed_lab: Lab) -> None:
    lab = keyed_lab
    askers = [Asker(lab[name], SEED + number) for number, name in enumerate(HOSTS)]
    with steady_streams(lab) as streams:
        mayhem = Mayhem(
            victims=[daemon(lab[name]) for name in ("router", *HOSTS)],
            servers=[lab["router"]],
            routers=[lab["router"]],
            askers=askers,
            seed=SEED,
            flows=lambda: streams.received,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        with askers[0], askers[1], askers[2]:
            mayhem.run(DEATHS)
            eventually(lambda: all(asker.answers for asker in askers), "everybody was served", seconds=60)
    assert streams.lost() == []
    assert mayhem.deaths >= DEATHS
