"""The lease store keeps what was promised, and leaves a damaged file alone."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dnat.leases.records import Change, DropHold, DropLease, HoldRecord, LeaseRecord, PutHold, PutLease
from dnat.store import Period, SqliteStore, State, StoreError
from dnat.types import PortRange, Protocol, Purpose

ADDRESS = IPv4Address("198.51.100.1")
RECORD = LeaseRecord(
    id=2**63 - 1,
    address=ADDRESS,
    ports=PortRange(20000, 20063),
    protocol=Protocol.ANY,
    purpose=Purpose.EPHEMERAL,
    host_id=bytes(range(16)),
    host=IPv4Address("10.66.0.11"),
    transaction=2**64 - 1,
    granted_at=1000.25,
    expires_at=4600.5,
)
HOLD = HoldRecord(ADDRESS, PortRange(5060, 5060), Protocol.UDP, Purpose.EXPLICIT, bytes(16), 2000.0)


async def _write(path: Path, *transactions: list[Change]) -> None:
    store = SqliteStore(path)
    await store.open(500.0)
    for changes in transactions:
        await store.transact(changes)
    await store.close()


async def _read(path: Path, now: float = 900.0) -> State:
    store = SqliteStore(path)
    state = await store.open(now)
    await store.close()
    return state


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "leases.sqlite"
    asyncio.run(_write(path, [PutLease(RECORD)], [PutHold(HOLD)]))
    state = asyncio.run(_read(path))
    assert state.records == (RECORD,)
    assert state.holds == (HOLD,)
    assert state.epoch_start == 500.0, "the epoch counts from the first opening"


def test_changes_apply_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "leases.sqlite"
    renewed = replace(RECORD, expires_at=9999.0)
    other = replace(RECORD, id=7, ports=PortRange(30000, 30001))
    asyncio.run(
        _write(
            path,
            [PutLease(RECORD), PutLease(other), PutHold(HOLD)],
            [PutLease(renewed), DropLease(7), DropHold(HOLD.address, HOLD.ports, HOLD.protocol)],
        )
    )
    state = asyncio.run(_read(path))
    assert state.records == (renewed,)
    assert state.holds == ()


def test_watchers_hear_of_a_change_before_it_is_confirmed(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        heard: list[str] = []
        store = SqliteStore(tmp_path / "leases.sqlite")
        await store.open(0.0)
        store.watch(lambda changes: heard.append(f"watcher {len(changes)}"))
        await store.transact([PutLease(RECORD), PutHold(HOLD)])
        heard.append("confirmed")
        await store.close()
        return heard

    assert asyncio.run(scenario()) == ["watcher 2", "confirmed"]


def test_a_change_that_cannot_be_written_is_refused_whole(tmp_path: Path) -> None:
    async def scenario() -> State:
        store = SqliteStore(tmp_path / "leases.sqlite")
        await store.open(0.0)
        await store.transact([PutLease(RECORD)])
        bad = replace(RECORD, id=2, host_id=None)  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="cannot be written"):
            await store.transact([DropLease(RECORD.id), PutLease(bad)])
        await store.close()
        return await _read(tmp_path / "leases.sqlite")

    assert asyncio.run(scenario()).records == (RECORD,)


NONSENSE = {
    "a port beyond all": "UPDATE leases SET first = 70000",
    "a row of other types": "UPDATE leases SET id = 'x'",
    "no epoch": "DELETE FROM meta",
}


@pytest.mark.parametrize("damage", ["garbage", "truncated", *NONSENSE])
def test_a_damaged_file_is_reported_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "leases.sqlite"
    asyncio.run(_write(path, [PutLease(RECORD)]))
    if damage == "garbage":
        path.write_bytes(b"this is not a database" * 500)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        with closing(sqlite3.connect(path)) as database:
            database.execute(NONSENSE[damage])
            database.commit()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="damaged") as caught:
        asyncio.run(_read(path))
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_a_store_that_could_not_be_opened_again_says_so(tmp_path: Path) -> None:
    """A server tries on, and is asked who held a port meanwhile."""
    path = tmp_path / "leases.sqlite"

    async def scenario() -> None:
        store = SqliteStore(path)
        await store.open(0.0)
        for each in tmp_path.iterdir():
            each.unlink()
        path.write_bytes(b"this is not a database" * 500)
        with pytest.raises(StoreError, match="damaged"):
            await store.open(0.0)
        with pytest.raises(StoreError, match="could not be opened again"):
            await store.tenures(Period())
        await store.close()

    asyncio.run(scenario())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        asyncio.run(_read(tmp_path / "file" / "leases.sqlite"))


def test_a_store_of_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "leases.sqlite"
    asyncio.run(_write(path, [PutLease(RECORD)], [PutHold(HOLD)]))
    with closing(sqlite3.connect(path)) as database:
        database.execute("ALTER TABLE holds DROP COLUMN purpose")
        database.execute("PRAGMA user_version=1")
        database.commit()
    state = asyncio.run(_read(path))
    assert state.records == (RECORD,)
    assert state.holds == (replace(HOLD, purpose=Purpose.EPHEMERAL),)
    asyncio.run(_write(path, [PutHold(HOLD)]))
    assert asyncio.run(_read(path)).holds == (HOLD,)
