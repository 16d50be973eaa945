"""Two routers, two port servers and three members of etcd on machines of their own: all carry, any may die."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nodes import Lab, eventually
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw
from test_enforcement import send_frames, warnings

from dnat.dataplane.router import RouterPlane
from dnat.instance import Instance
from dnat.lab import builder, control
from dnat.lab.demo_calls import Plan, Round
from dnat.lab.demo_stage import perform, prepared
from dnat.lab.topology import Topology
from dnat.types import PortRange

ROUTERS, SERVERS, MEMBERS = ("router", "router2"), ("server", "server2"), ("etcd1", "etcd2", "etcd3")
HOSTS = ("phone1", "phone2", "sip")
TALK = 8.0
"""Seconds of calls during which the store goes away and comes back."""
PATIENCE = 60.0


@pytest.fixture(scope="module")
def wide(_root: None) -> Iterator[Lab]:
    """The lab that `dnatctl lab up --routers 2 --server apart --servers 2` builds. Tests leave it as they find it."""
    topology = Topology(prefix=f"dt{os.getpid()}w", routers=2, servers=2)
    try:
        control.up(topology, lambda _: None)
        yield Lab(topology)
    finally:
        builder.destroy(topology.prefix)


def _owned(lab: Lab, router: str) -> list[PortRange]:
    """The ports that the programs of a router know an owner of."""
    plane = RouterPlane.open(Instance(lab[router].namespace).pins("router"))
    try:
        return [owner.ports for owner in plane.owners()]
    finally:
        plane.close()


def _knows_macs(lab: Lab) -> bool:
    """Whether a router knows the link addresses of all hosts, some of which have another as their gateway."""
    said = lab["router"].run("ip", "neigh", "show", "dev", "lan").stdout.splitlines()
    return {lab[name].address for name in HOSTS} <= {line.split()[0] for line in said if "lladdr" in line}


def _kill_members(lab: Lab, *names: str) -> None:
    for name in names:
        pid = builder.etcd_pid(lab.topology, name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda name=name: builder.etcd_pid(lab.topology, name) is None, f"{name} has ended")  # type: ignore[misc]


def _answers(lab: Lab) -> bool:
    """Whether ports can be had."""
    done = lab["phone1"].dnatctl("request", "-o", "json", "--ports", "1", code=None)
    if done.returncode == 0:
        lab["phone1"].dnatctl("release", str(json.loads(done.stdout)["lease"]["first"]))
    return done.returncode == 0


def _asked_for(lab: Lab) -> list[dict[str, int]]:
    return [lease for lease in lab["phone1"].leases() if lease["purpose"] == "explicit"]


def _reachable(lab: Lab) -> list[str]:
    """The hosts that exchange packets with the outside."""
    asking = ("curl", "-s", "--max-time", "5", f"http://{lab.ext}/")
    return [name for name in HOSTS if lab[name].run(*asking, code=None).stdout.startswith(lab.external)]


def test_both_routers_carry_and_know_every_owner(wide: Lab) -> None:
    before = {(name, way): wide[name].counter(way) for name in ROUTERS for way in ("router_in", "router_out")}
    eventually(
        lambda: (
            _reachable(wide) == [*HOSTS]
            and all(wide[name].counter(way) > count for (name, way), count in before.items())
        ),
        "packets of both ways went through both routers",
        seconds=PATIENCE,
    )
    lease = wide["phone1"].request("--ports", "2")
    ports = PortRange(lease["first"], lease["last"])
    for router in ROUTERS:
        assert any(ports.first in owned and ports.last in owned for owned in _owned(wide, router)), "at once"
        assert wide[router].show()["external_addresses"] == [wide.external]
        assert wide[router].show()["router"]["store"]["reachable"] is True
    wide["phone1"].dnatctl("release", str(ports))
    for router in ROUTERS:
        eventually(lambda router=router: ports not in _owned(wide, router), f"{router} knows that it ended")  # type: ignore[misc]


def test_no_port_is_granted_while_a_router_does_not_know_its_owner(wide: Lab) -> None:
    """A router that hangs is waited for until it counts as gone; when it goes on, it catches up."""
    pid = wide["router2"].pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        lease = wide["phone1"].request("--ports", "1")
        assert time.monotonic() - began > 1.5, "the answer came before the router had a chance"
        assert not any(lease["first"] in owned for owned in _owned(wide, "router2"))
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(
        lambda: any(lease["first"] in owned for owned in _owned(wide, "router2")), "it has caught up", seconds=PATIENCE
    )
    wide["phone1"].dnatctl("release", str(lease["first"]))


def test_who_steals_is_told_through_the_store(wide: Lab) -> None:
    """The router is not the server: it reports, and one server tells the thief."""
    victim, thief = wide["phone1"], wide["phone2"]
    stolen = victim.ports("ephemeral").first
    packet = IP(src=wide.external, dst=wide.ext) / UDP(sport=stolen, dport=9) / Raw(b"stolen")
    reported = sum(wide[server].show()["pap"]["server"].get("offence", 0) for server in SERVERS)
    eventually(lambda: _knows_macs(wide), "the router has heard from victim and thief", seconds=PATIENCE)
    with warnings(thief) as told:
        send_frames(thief, wide, [packet])
        eventually(told, "the thief is told", seconds=PATIENCE)
    assert sum(wide[server].show()["pap"]["server"].get("offence", 0) for server in SERVERS) == reported + 1


def test_the_other_server_takes_over_and_the_first_comes_back_with_every_lease(wide: Lab) -> None:
    server = wide["server"]
    before = server.leases()
    assert wide["server2"].leases() == before
    server.kill()
    lease = wide["phone1"].request("--ports", "1")
    assert "leased from 10.66.0.6" in wide["phone1"].dnatctl("status").stdout
    server.dnatctl("up")
    assert len(server.leases()) == len(before) + 1
    # As its own now: it can take back what the other granted.
    server.dnatctl("invalidate", str(lease["first"]))
    eventually(lambda: not _asked_for(wide), "the host has heard", seconds=PATIENCE)
    assert server.leases() == before


def test_calls_go_on_while_the_store_dies_and_a_router_starts_without_it(wide: Lab, tmp_path: Path) -> None:
    """Calls through both routers; one member of etcd dies, then all; a router's daemon is killed and starts again."""

    def disaster() -> None:
        before = {name: wide[name].counter("router_out") for name in ROUTERS}
        eventually(
            lambda: all(wide[name].counter("router_out") > count + 100 for name, count in before.items()),
            "both routers carry a call",
            seconds=20,
        )
        _kill_members(wide, "etcd1")
        _kill_members(wide, "etcd2", "etcd3")
        wide["router2"].kill()
        wide["router2"].dnatctl("up")

    plans = (Plan("phone1", "ext"), Plan("phone2", "ext", encrypted=True))
    with ThreadPoolExecutor(1) as pool, prepared(wide.topology, tmp_path) as stage:
        dying = pool.submit(disaster)
        result = perform(stage, tmp_path, lambda _: None, (Round("calls", "", plans),), TALK)
        dying.result()
        assert wide["router2"].show()["router"]["store"]["reachable"] is False
        assert _reachable(wide) == [*HOSTS]
        assert "store failed" in wide["phone1"].dnatctl("request", code=3).stderr
        builder.start_etcd(wide.topology)
        eventually(lambda: _answers(wide), "servers answer again", seconds=PATIENCE)
        for router in ROUTERS:
            eventually(lambda router=router: wide[router].show()["router"]["store"]["reachable"], "it follows again",
                       seconds=PATIENCE)  # type: ignore[misc]  # fmt: skip
    assert result.problems == ()
    one, other = ({(owner["first"], owner["host"]) for owner in wide[name].show()["owners"]} for name in ROUTERS)
    assert one == other
    assert len(one) == 2 * len(HOSTS)


def test_a_machine_that_boots_without_the_store_routes(wide: Lab) -> None:
    """Not only the daemon is new: programs and maps, too. All there is is the file."""
    _kill_members(wide, *MEMBERS)
    router = wide["router2"]
    owned = _owned(wide, "router2")
    router.dnatctl("down")
    router.dnatctl("up")
    assert _owned(wide, "router2") == owned
    assert "the lease store does not answer" in router.dnatctl("doctor", code=None).stdout
    assert _reachable(wide) == [*HOSTS]
    builder.start_etcd(wide.topology)
    eventually(lambda: _answers(wide), "servers answer again", seconds=PATIENCE)
