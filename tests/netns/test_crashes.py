"""Daemons die without a word, and come back: no packet is lost, no port is forgotten, none is given twice."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from nodes import Lab, Node, eventually
from streams import Streams

from dnat.client import Client, lease
from dnat.instance import Instance

UDP = socket.SOCK_DGRAM
HOSTS = ("phone1", "phone2", "sip")


@contextmanager
def steady_streams(lab: Lab) -> Iterator[Streams]:
    """phone1 with the outside, from a port of its own, a translated one and one asked for; with phone2, too."""
    phone, other, ext = lab["phone1"], lab["phone2"], lab["ext"]
    asked, others = phone.request("--ports", "1")["first"], other.request("--ports", "1")["first"]
    with ExitStack() as stack:
        pairs = []
        for local_port in (0, 4321, asked):
            near = stack.enter_context(phone.socket(UDP, local_port))
            far = stack.enter_context(ext.socket(UDP, address=lab.ext))
            pairs.append(_meet(near, far, far.getsockname()))
        near = stack.enter_context(phone.socket(UDP))
        far = stack.enter_context(other.socket(UDP, others))
        pairs.append(_meet(near, far, (lab.external, others)))
        with Streams(pairs) as streams:
            eventually(lambda: streams.received > 50, "the streams flow", seconds=20)
            yield streams
    phone.dnatctl("release", str(asked))
    other.dnatctl("release", str(others))


def _meet(near: socket.socket, far: socket.socket, at: tuple[str, int]) -> tuple[socket.socket, socket.socket]:
    near.connect(at)
    near.send(b"here I am")
    _, source = far.recvfrom(100)
    far.connect(source)
    return near, far


@pytest.mark.parametrize("name", ["phone1", "router"])
def test_killed_and_up_again_without_one_lost_packet(lab: Lab, name: str) -> None:
    node = lab[name]
    with steady_streams(lab) as streams:
        leases, pid = node.leases(), node.pid()
        node.kill()
        alone = streams.sent
        eventually(lambda: streams.received > alone + 100, "packets flow without the daemon", seconds=20)
        node.dnatctl("up")
        again = streams.sent
        eventually(lambda: streams.received > again + 100, "packets flow with the new daemon", seconds=20)
        assert node.pid() != pid
        assert node.leases() == leases
    assert streams.lost() == []
    assert streams.sent > 250


def test_a_server_that_died_knows_every_lease(routed_lab: Lab) -> None:
    router = routed_lab["router"]
    before = router.leases(), router.show()["owners"], {name: routed_lab[name].leases() for name in HOSTS}
    router.kill()
    router.dnatctl("up")
    assert (router.leases(), router.show()["owners"], {name: routed_lab[name].leases() for name in HOSTS}) == before


def test_a_host_that_lost_its_memory_gets_its_ports_again(routed_lab: Lab) -> None:
    """As after a power failure: nothing of /run is left, only its identity."""
    phone = routed_lab["phone1"]
    asked = phone.request("--ports", "2", "--protocol", "udp")
    leases = phone.leases()
    phone.kill()
    (phone.runtime / "leases.json").unlink()
    phone.dnatctl("up")
    assert phone.leases() == leases
    phone.dnatctl("release", asked["id"])


def test_a_store_that_was_lost_is_filled_again_by_the_hosts(routed_lab: Lab) -> None:
    """The server says that it is young; hosts register what they hold, programs keep theirs, nobody gets it as well."""
    router, phone = routed_lab["router"], routed_lab["phone1"]
    phone.dnatctl("request", "--port", "5071")
    with lease(2, path=Instance(phone.namespace).socket) as ports, steady_streams(routed_lab) as streams:
        before = {name: _ports(routed_lab[name]) for name in HOSTS}
        pids = {name: routed_lab[name].pid() for name in HOSTS}
        router.kill()
        for path in (Path("/var/lib/dnat") / router.namespace).glob("leases.sqlite*"):
            path.unlink()
        router.dnatctl("up")
        # Until everybody has had the time to register, what somebody may hold is for nobody else.
        refused = routed_lab["phone2"].dnatctl("request", "--port", "5071", code=None)
        assert refused.returncode == 3 and "another host has" in refused.stderr
        expected = sorted(each for held in before.values() for each in held)
        assert _ports(router) == expected, "the server knows all ports again"
        assert {name: _ports(routed_lab[name]) for name in HOSTS} == before
        assert {name: routed_lab[name].pid() for name in HOSTS} == pids, "no daemon was restarted"
        assert ports.held
        again = streams.sent
        eventually(lambda: streams.received > again + 100, "packets flow", seconds=20)
    assert streams.lost() == []
    eventually(lambda: ports.first not in {first for first, _, _ in _ports(router)}, "the program's are given back", 20)
    phone.dnatctl("release", "5071")


def _ports(node: Node) -> list[tuple[int, int, str]]:
    return [(lease["first"], lease["last"], lease["purpose"]) for lease in node.leases()]


def test_no_port_is_granted_twice_by_a_server_that_dies_while_granting(routed_lab: Lab) -> None:
    """Three hosts ask without a pause, the server is killed and started meanwhile, twice."""
    router = routed_lab["router"]
    deaths = iter([5, 20])
    granted: list[dict[str, Any]] = []

    def ask(host: str) -> None:
        with Client(routed_lab[host].runtime / "api.sock") as client:
            for _ in range(15):
                granted.append(client.call("request", count=2)["lease"] | {"host": routed_lab[host].address})

    with ThreadPoolExecutor(len(HOSTS)) as pool:
        asking = [pool.submit(ask, host) for host in HOSTS]
        for number in deaths:
            eventually(lambda number=number: len(granted) >= number, f"{number} leases are granted", seconds=20)
            router.kill()
            router.dnatctl("up")
        for future in asking:
            future.result()

    assert len(granted) == 15 * len(HOSTS)
    known = router.leases()
    for one, other in itertools.combinations(known, 2):
        assert one["last"] < other["first"] or other["last"] < one["first"], f"{one} and {other}"
    holders = {(lease["first"], lease["last"]): lease["host"] for lease in known}
    assert [lease for lease in granted if holders[lease["first"], lease["last"]] != lease["host"]] == []
    for host in HOSTS:
        mine = [lease["id"] for lease in granted if lease["host"] == routed_lab[host].address]
        routed_lab[host].dnatctl("release", *mine)
