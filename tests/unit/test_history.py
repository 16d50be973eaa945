"""The log of blocks: who held an address and port, at any time, and nothing that never was."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnat.leases.records import Change, DropLease, LeaseRecord, PutLease
from dnat.store import Period, SqliteStore, StoreError, Tenure
from dnat.types import PortRange, Protocol, Purpose

ADDRESS = IPv4Address("198.51.100.1")
PHONE, MOVED = IPv4Address("10.66.0.11"), IPv4Address("10.66.0.111")
RECORD = LeaseRecord(
    7, ADDRESS, PortRange(20000, 20063), Protocol.ANY, Purpose.EPHEMERAL, bytes(16), PHONE, 1, 100.0, 3700.0
)


class Log:
    """A store with a clock that tests set."""

    def __init__(self, path: Path, retention: float = 1e9) -> None:
        self.now = 0.0
        self.store = SqliteStore(path, retention, lambda: self.now)

    async def at(self, now: float, *changes: Change) -> None:
        self.now = now
        await self.store.transact(changes)

    async def holder(self, at: float, port: int = 20001) -> IPv4Address | None:
        found = await self.store.tenures(Period(at, at, ADDRESS, port))
        assert len(found) <= 1
        return found[0].host if found else None


def run(path: Path, story: Callable[[Log], Coroutine[Any, Any, None]], retention: float = 1e9) -> None:
    async def do() -> None:
        log = Log(path, retention)
        await log.store.open(0.0)
        try:
            await story(log)
        finally:
            await log.store.close()

    asyncio.run(do())


def test_who_held_a_port_when(tmp_path: Path) -> None:
    async def story(log: Log) -> None:
        await log.at(100.0, PutLease(RECORD))
        await log.at(200.0, PutLease(replace(RECORD, expires_at=9000.0)))
        await log.at(300.0, PutLease(replace(RECORD, host=MOVED)))
        await log.at(400.0, DropLease(RECORD.id))
        other = replace(RECORD, id=8, host_id=b"o" * 16, host=IPv4Address("10.66.0.12"))
        await log.at(500.0, PutLease(other))
        held = {at: await log.holder(at) for at in (99.0, 100.0, 250.0, 299.9, 300.0, 399.0, 400.0, 499.0, 501.0)}
        assert held == {
            99.0: None,
            100.0: PHONE,
            250.0: PHONE,
            299.9: PHONE,
            300.0: MOVED,
            399.0: MOVED,
            400.0: None,
            499.0: None,
            501.0: IPv4Address("10.66.0.12"),
        }
        assert await log.holder(250.0, 20064) is None
        assert [(each.since, each.until) for each in await log.store.tenures(Period())] == [
            (100.0, 300.0),
            (300.0, 400.0),
            (500.0, None),
        ]

    run(tmp_path / "leases.sqlite", story)


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "leases.sqlite"

    async def before(log: Log) -> None:
        await log.at(100.0, PutLease(RECORD))

    async def after(log: Log) -> None:
        await log.at(200.0, PutLease(replace(RECORD, expires_at=9000.0)))
        await log.at(300.0, DropLease(RECORD.id))
        assert [(each.since, each.until) for each in await log.store.tenures(Period())] == [(100.0, 300.0)]

    run(path, before)
    run(path, after)


def test_what_failed_is_not_in_the_log(tmp_path: Path) -> None:
    """A transaction that was rolled back granted nothing, and the next one is entered in full."""
    path = tmp_path / "leases.sqlite"

    async def story(log: Log) -> None:
        with closing(sqlite3.connect(path)) as blocker:
            blocker.execute("CREATE TRIGGER full BEFORE INSERT ON history BEGIN SELECT RAISE(ABORT, 'disk full'); END")
            blocker.commit()
            with pytest.raises(StoreError, match="disk full"):
                await log.at(100.0, PutLease(RECORD))
            blocker.execute("DROP TRIGGER full")
            blocker.commit()
        assert await log.store.tenures(Period()) == []
        await log.at(200.0, PutLease(RECORD))
        assert await log.holder(250.0) == PHONE

    run(path, story)


def test_leases_from_before_the_log_are_entered(tmp_path: Path) -> None:
    path = tmp_path / "leases.sqlite"

    async def before(log: Log) -> None:
        await log.at(150.0, PutLease(RECORD))

    async def after(log: Log) -> None:
        assert await log.holder(120.0) == PHONE

    run(path, before)
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE history")
        database.execute("ALTER TABLE holds DROP COLUMN purpose")
        database.execute("PRAGMA user_version=1")
        database.commit()
    run(path, after)


def test_records_are_kept_for_as_long_as_was_said(tmp_path: Path) -> None:
    async def story(log: Log) -> None:
        standing = replace(RECORD, id=9, ports=PortRange(30000, 30000))
        await log.at(100.0, PutLease(RECORD), PutLease(standing))
        await log.at(200.0, DropLease(RECORD.id))
        await log.at(200.0 + 86400.0 - 1, PutLease(replace(standing, expires_at=1e6)))
        assert len(await log.store.tenures(Period())) == 2
        await log.at(200.0 + 86400.0 + 3601, PutLease(replace(standing, expires_at=2e6)), DropLease(1))
        assert [each.lease for each in await log.store.tenures(Period())] == [9]

    run(tmp_path / "leases.sqlite", story, retention=86400.0)


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["put", "move", "drop"])), max_size=25))
def test_the_log_agrees_with_the_leases_at_every_moment(events: list[tuple[int, str]]) -> None:
    async def do() -> None:
        log = Log(Path(":memory:"))
        await log.store.open(0.0)
        hosts: dict[int, IPv4Address] = {}
        expected: list[dict[int, IPv4Address]] = []
        for moment, (number, what) in enumerate(events):
            record = replace(RECORD, id=number, ports=PortRange(number, number), host=hosts.get(number, PHONE))
            if what == "drop":
                hosts.pop(number, None)
                await log.at(float(moment), DropLease(number))
            else:
                hosts[number] = MOVED if what == "move" else record.host
                await log.at(float(moment), PutLease(replace(record, host=hosts[number])))
            expected.append(dict(hosts))
        for moment, held in enumerate(expected):
            found: list[Tenure] = await log.store.tenures(Period(moment + 0.5, moment + 0.5))
            assert {each.lease: each.host for each in found} == held
        await log.store.close()

    asyncio.run(do())
