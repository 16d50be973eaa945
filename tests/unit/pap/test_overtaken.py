"""Servers that share a store, without I/O: whoever overtakes whom, no port has two owners and all come to agree."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given, settings
from hypothesis import strategies as st

from dnat.leases.pool import Pool
from dnat.leases.records import (
    Change,
    DropHold,
    DropLease,
    HoldKey,
    HoldRecord,
    LeaseRecord,
    PutHold,
    PutLease,
)
from dnat.leases.table import LeaseTable
from dnat.pap.answers import Step
from dnat.pap.codec import decode, encode
from dnat.pap.messages import LeaseInfo, Message, MessageType, Result, Want
from dnat.pap.policy import Policy
from dnat.pap.server import Server
from dnat.types import PortRange, Protocol, Purpose

ADDRESS = IPv4Address("198.51.100.1")
POOL = Pool((ADDRESS,), (PortRange(1000, 1007),))
POLICY = Policy((IPv4Network("10.0.0.0/8"),))


class Shared:
    """What is durable; a transaction counts only if its server had heard of all before."""

    def __init__(self) -> None:
        self.leases: dict[int, LeaseRecord] = {}
        self.holds: dict[HoldKey, HoldRecord] = {}
        self.log: list[Change] = []

    def commit(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self.log.append(change)
            match change:
                case PutLease(record):
                    self.leases[record.id] = record
                case DropLease(lease_id):
                    self.leases.pop(lease_id, None)
                case PutHold(hold):
                    self.holds[hold.key] = hold
                case DropHold(address, ports, protocol):
                    self.holds.pop((address, ports, protocol), None)

    def table(self) -> LeaseTable:
        """Raises LeaseConflict where a port has two owners."""
        table = LeaseTable(POOL, hold=5.0)
        table.load(self.leases.values(), self.holds.values())
        return table


class One:
    """A server of several; `heard` says how much of the store's log it knows."""

    def __init__(self, shared: Shared, seed: int) -> None:
        self._shared = shared
        self._random = random.Random(seed)
        self.core = Server(shared.table(), lambda: self._random.getrandbits(64), POLICY, 0.0)
        self.heard = 0
        self.answers: list[tuple[Message, IPv4Address]] = []

    def commit(self, now: float) -> None:
        """Commit what has gathered, unless it is overtaken: then decide again, and commit that."""
        steps = self.core.steps()
        if self.heard < len(self._shared.log):
            self.catch_up(now, steps)
            steps = self.core.steps()
        self._shared.commit(change for step in steps for change in step.changes)
        self.heard = len(self._shared.log)
        for step in steps:
            self.answers += [(decode(octets), host) for octets, (host, _) in step.datagrams]
            self.core.committed(step, now)

    def catch_up(self, now: float, steps: Iterable[Step] = ()) -> None:
        missed, self.heard = self._shared.log[self.heard :], len(self._shared.log)

        def correct(undone: Iterable[Change]) -> None:
            leases, holds = set(), set()
            for change in (*missed, *undone):
                match change:
                    case PutLease(record):
                        leases.add(record.id)
                    case DropLease(lease_id):
                        leases.add(lease_id)
                    case PutHold(hold):
                        holds.add(hold.key)
                    case DropHold(address, ports, protocol):
                        holds.add((address, ports, protocol))
            self.core.table.correct(
                {each: self._shared.leases.get(each) for each in leases},
                {each: self._shared.holds.get(each) for each in holds},
            )

        self.core.overtaken(steps, correct, now)


def ask(server: One, host: int, transaction: int, want: Want | None, release: LeaseRecord | None, now: float) -> None:
    host_id = host.to_bytes(16)
    if release is not None:
        info = LeaseInfo(release.id, release.address, release.ports, release.protocol, release.purpose, 0)
        message = Message(MessageType.RELEASE, transaction, host_id=host_id, leases=(info,))
    else:
        message = Message(MessageType.REQUEST, transaction, host_id=host_id, want=want)
    server.core.receive(encode(message), (IPv4Address("10.0.0.1") + host, 5728), now)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["want", "specific", "release", "repeat", "commit", "catch up", "revoke", "expire"]),
        st.integers(0, 1),
        st.integers(0, 3),
        st.integers(0, 7),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_servers_that_overtake_each_other_never_contradict_themselves(
    story: list[tuple[str, int, int, int]],
) -> None:
    shared = Shared()
    servers = [One(shared, 1), One(shared, 2)]
    transactions = itertools.count(1)
    last: dict[int, tuple[int, Want]] = {}
    now = 100.0
    for what, number, host, value in story:
        server = servers[number]
        now += 0.5
        match what:
            case "want" | "specific":
                first = 1000 + value if what == "specific" else None
                count = 1 if first is not None else 1 + value // 2
                want = Want(count, Protocol.ANY, Purpose.EXPLICIT, exact=True, first=first)
                last[host] = next(transactions), want
                ask(server, host, *last[host], None, now)
            case "repeat" if host in last:
                # A host that was not answered asks the other server the same.
                ask(servers[1 - number], host, *last[host], None, now)
            case "release":
                mine = [each for each in shared.leases.values() if each.host_id == host.to_bytes(16)]
                if mine:
                    ask(server, host, next(transactions), None, mine[value % len(mine)], now)
            case "commit":
                server.commit(now)
            case "catch up":
                server.catch_up(now)
            case "revoke":
                server.core.invalidate(list(shared.leases)[:value], Result.ADMINISTRATIVE, now)
            case "expire":
                server.core.timeout(now)
        shared.table()
    for server in servers:
        server.commit(now)
    for server in servers:
        server.catch_up(now)
        server.commit(now)
    shared.table()
    for server in servers:
        server.catch_up(now)
        assert {each.id: each for each in server.core.table} == shared.leases
        assert {each.key: each for each in server.core.table.holds} == shared.holds
    assert not any(count < 0 for server in servers for count in server.core.counters.values())


def test_the_loser_of_a_race_is_told_what_is_true_by_then() -> None:
    shared = Shared()
    one, two = One(shared, 1), One(shared, 2)
    want = Want(1, Protocol.ANY, Purpose.EXPLICIT, exact=True, first=1003)
    ask(one, 1, 11, want, None, 100.0)
    ask(two, 2, 22, want, None, 100.0)
    one.commit(100.1)
    two.commit(100.1)
    assert [(message.result, str(host)) for message, host in one.answers] == [(Result.SUCCESS, "10.0.0.2")]
    assert [(message.result, str(host)) for message, host in two.answers] == [(Result.PORT_TAKEN, "10.0.0.3")]
    assert two.core.counters["decided-again"] == 1
    assert two.core.counters["want-success"] == 0


def test_hosts_are_told_of_leases_taken_back_even_if_another_server_was_first() -> None:
    shared = Shared()
    one, two = One(shared, 1), One(shared, 2)
    ask(one, 1, 11, Want(2, Protocol.ANY, Purpose.EXPLICIT), None, 100.0)
    one.commit(100.1)
    two.catch_up(100.1)
    (lease,) = shared.leases
    for server in (one, two):
        server.core.invalidate([lease], Result.ADMINISTRATIVE, 100.2)
        server.commit(100.3)
    for server in (one, two):
        assert [m.type for m, _ in server.answers if m.type is MessageType.INVALIDATE] == [MessageType.INVALIDATE]
    assert not shared.leases
    assert len(shared.holds) == 1
