"""What every lease store promises: the same tests for SQLite and for etcd."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from dnat.leases.records import Change, DropHold, DropLease, HoldRecord, LeaseRecord, PutHold, PutLease
from dnat.store import Period, PublishedPool, SqliteStore, Store
from dnat.types import PortRange, Protocol, Purpose

ADDRESS = IPv4Address("198.51.100.1")
PHONE, MOVED, OTHER = IPv4Address("10.66.0.11"), IPv4Address("10.66.0.111"), IPv4Address("10.66.0.12")
POOL = PublishedPool((ADDRESS,), (PortRange(1024, 59999),))
RECORD = LeaseRecord(
    id=2**63 - 1,
    address=ADDRESS,
    ports=PortRange(20000, 20063),
    protocol=Protocol.ANY,
    purpose=Purpose.EPHEMERAL,
    host_id=bytes(range(16)),
    host=PHONE,
    transaction=2**64 - 1,
    granted_at=1000.25,
    expires_at=4600.5,
)
HOLD = HoldRecord(ADDRESS, PortRange(5060, 5060), Protocol.UDP, Purpose.EXPLICIT, bytes(16), 2000.0)

Make = Callable[..., Store]


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["sqlite", "etcd"])
def make(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Make:
    """A function that makes a store, the same one each time."""
    if request.param == "sqlite":
        return lambda retention=1e9: SqliteStore(tmp_path / "leases.sqlite", retention, clock)
    from dnat.store.etcd.store import EtcdStore

    cluster = request.getfixturevalue("cluster")
    return lambda retention=1e9: EtcdStore(cluster, POOL, retention, clock)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(make: Make, story: Callable[[Store], Coroutine[Any, Any, None]], opened: float = 500.0, **options: Any) -> Any:
    """Tell a story with an open store; returns what a store that is opened afterwards holds."""

    async def do() -> Any:
        store = make(**options)
        await store.open(opened)
        try:
            await story(store)
        finally:
            await store.close()
        store = make(**options)
        state = await store.open(opened + 400.0)
        await store.close()
        return state

    return asyncio.run(do())


def _transactions(*transactions: list[Change]) -> Callable[[Store], Coroutine[Any, Any, None]]:
    async def story(store: Store) -> None:
        for changes in transactions:
            await store.transact(changes)

    return story


def test_what_was_written_is_read_back(make: Make) -> None:
    state = run(make, _transactions([PutLease(RECORD)], [PutHold(HOLD)]))
    assert state.records == (RECORD,)
    assert state.holds == (HOLD,)
    assert state.epoch_start == 500.0, "the epoch counts from the first opening"


def test_changes_apply_in_their_order(make: Make) -> None:
    renewed = replace(RECORD, expires_at=9999.0)
    other = replace(RECORD, id=7, ports=PortRange(30000, 30001))
    state = run(
        make,
        _transactions(
            [PutLease(RECORD), PutLease(other), PutHold(HOLD)],
            [PutLease(renewed), DropLease(7), DropHold(HOLD.address, HOLD.ports, HOLD.protocol)],
            [PutHold(HOLD), DropHold(*HOLD.key), PutHold(replace(HOLD, until=3000.0))],
        ),
    )
    assert state.records == (renewed,)
    assert state.holds == (replace(HOLD, until=3000.0),)


def test_as_much_as_it_takes_goes_into_one_transaction(make: Make) -> None:
    records = [replace(RECORD, id=n, ports=PortRange(1000 + n, 1000 + n), transaction=n) for n in range(1, 801)]
    ended: list[Change] = []
    for record in records[:400]:
        hold = HoldRecord(ADDRESS, record.ports, record.protocol, record.purpose, record.host_id, 2000.0)
        ended += [DropLease(record.id), PutHold(hold)]
    state = run(make, _transactions([PutLease(each) for each in records], ended))
    assert sorted(each.id for each in state.records) == list(range(401, 801))
    assert sorted(each.ports.first for each in state.holds) == list(range(1001, 1401))


def test_watchers_hear_of_a_change_before_it_is_confirmed(make: Make) -> None:
    heard: list[str] = []

    async def story(store: Store) -> None:
        store.watch(lambda changes: heard.append(f"watcher {len(changes)}"))
        await store.transact([PutLease(RECORD), PutHold(HOLD)])
        heard.append("confirmed")

    run(make, story)
    assert heard == ["watcher 2", "confirmed"]


def test_a_store_that_is_opened_again_in_use_says_the_same(make: Make) -> None:
    async def story(store: Store) -> None:
        await store.transact([PutLease(RECORD)])
        assert (await store.open(9000.0)).records == (RECORD,)
        await store.transact([DropLease(RECORD.id), PutHold(HOLD)])
        state = await store.open(9000.0)
        assert (state.records, state.holds, state.epoch_start) == ((), (HOLD,), 500.0)

    run(make, story)


def test_who_held_a_port_when(make: Make, clock: Clock) -> None:
    async def story(store: Store) -> None:
        async def at(now: float, *changes: Change) -> None:
            clock.now = now
            await store.transact(changes)

        await at(100.0, PutLease(RECORD))
        await at(200.0, PutLease(replace(RECORD, expires_at=9000.0)))
        await at(300.0, PutLease(replace(RECORD, host=MOVED)))
        await at(400.0, DropLease(RECORD.id))
        await at(500.0, PutLease(replace(RECORD, id=8, host_id=b"o" * 16, host=OTHER)))
        holders = {}
        for moment in (99.0, 100.0, 299.9, 300.0, 399.0, 400.0, 501.0):
            found = await store.tenures(Period(moment, moment, ADDRESS, 20001))
            holders[moment] = [each.host for each in found]
        assert holders == {
            99.0: [], 100.0: [PHONE], 299.9: [PHONE], 300.0: [MOVED], 399.0: [MOVED], 400.0: [], 501.0: [OTHER],
        }  # fmt: skip
        times = [(each.since, each.until) for each in await store.tenures(Period())]
        assert times == [(100.0, 300.0), (300.0, 400.0), (500.0, None)]
        assert not await store.tenures(Period(port=20064))

    run(make, story)


def test_the_log_forgets_what_ended_long_ago(make: Make, clock: Clock) -> None:
    async def story(store: Store) -> None:
        for now in (1000.0, 20000.0):
            clock.now = now
            await store.transact([PutLease(replace(RECORD, id=int(now)))])
            clock.now = now + 10.0
            await store.transact([DropLease(int(now))])
        clock.now = 20000.0 + 3700.0
        await store.transact([PutLease(RECORD)])
        assert [each.since for each in await store.tenures(Period())] == [20000.0, clock.now]

    run(make, story, retention=5000.0)
