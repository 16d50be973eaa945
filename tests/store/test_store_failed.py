"""A server says that its store failed: a host that knows another one asks there, whatever it asks."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from servers import Host, address, serving_from
from waiting import eventually

from dnat.daemon.server import ServerRole
from dnat.errors import UsageError
from dnat.leases.records import Change, PutLease
from dnat.store import SqliteStore, StoreError
from dnat.types import Lease


@contextlib.asynccontextmanager
async def two_servers(directory: Path) -> AsyncIterator[tuple[Host, Lease, ServerRole, ServerRole]]:
    """A host with a lease that both servers know, of which the one that it asks can write nothing just now."""
    async with serving_from(directory / "1", 1) as (failing, store), Host(11, (1, 2), directory) as phone:
        lease = await phone.want(4)
        assert lease is not None
        shutil.copytree(directory / "1", directory / "2")
        async with serving_from(directory / "2", 2) as (other, _):
            fail(store)
            yield phone, lease, failing, other


def fail(store: SqliteStore) -> None:
    """What it is to write next finds the file read-only; after that it is opened again and well."""
    assert store._database is not None
    store._database.execute("PRAGMA query_only=ON")


def test_renewals_go_to_another_server_at_once(tmp_path: Path) -> None:
    """Not after a minute, and not to the same server again."""

    async def story() -> None:
        async with two_servers(tmp_path) as (phone, lease, failing, other):
            phone.leasing.adopt_saved()  # as a daemon that starts anew: what it holds is renewed
            await eventually(lambda: other.counters.get("renew-success"), "the other server renews the lease")
            assert failing.counters["store-failed"] == 1
            assert phone.leasing.server == address(2)
            assert [each.id for each in phone.leasing.leases] == [lease.id]

    asyncio.run(story())


def test_releases_go_to_another_server(tmp_path: Path) -> None:
    async def story() -> None:
        async with two_servers(tmp_path) as (phone, lease, failing, other):
            await phone.release(lease)
            assert (failing.counters["store-failed"], other.counters["release-success"]) == (1, 1)
            assert not other.records()
            await eventually(lambda: len(failing.records()) == 1, "it did not happen at the first server")

    asyncio.run(story())


def test_a_host_with_one_server_asks_it_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving_from(tmp_path / "1", 1) as (server, store), Host(11, (1,), tmp_path) as phone:
            lease = await phone.want(4)
            assert lease is not None
            fail(store)
            await phone.release(lease)
            assert server.counters["store-failed"] == 1
            assert not server.records()

    asyncio.run(story())


def test_a_follower_that_fails_does_not_silence_the_server(tmp_path: Path) -> None:
    """As a router does that has no room for one more host: the lease stands, and everybody else is served."""

    def overflow(changes: Sequence[Change]) -> None:
        if any(isinstance(each, PutLease) and each.record.ports.first == 5060 for each in changes):
            raise UsageError("no room for one more host")

    async def story() -> None:
        async with (
            serving_from(tmp_path / "1", 1) as (server, store),
            Host(11, (1,), tmp_path) as phone,
            Host(12, (1,), tmp_path) as other,
        ):
            store.watch(overflow)
            assert await phone.want(1, 5060) is None
            assert server.counters["store-failed"] == 1
            lease = await other.want(4)
            assert lease is not None
            await other.release(lease)
            assert [each.ports.first for each in server.records()] == [5060], "as the store has it"

    asyncio.run(story())


def test_a_store_that_contradicts_itself_is_named_and_left_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving_from(tmp_path, 1) as (_, store), Host(11, (1,), tmp_path) as phone:
            lease = await phone.want(4)
            assert lease is not None
            (record,) = (await store.open(0.0)).records
            await store.transact([PutLease(replace(record, id=7))])
        with pytest.raises(StoreError, match=r"contradicts itself: lease .* twice.* move it away"):
            async with serving_from(tmp_path, 1):
                pass

    asyncio.run(story())
