"""What routers follow: they hear of everything, say how far they are, and go on from a file while the store is away."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from aetcd import rpc
from etcd_cluster import EtcdCluster
from test_contract import OTHER, PHONE, POOL, RECORD
from waiting import eventually

from dnat.leases.records import Change, DropLease, LeaseRecord, PutLease
from dnat.store import PublishedPool, StoreConflict, StoreError
from dnat.store.etcd import layout, live
from dnat.store.etcd.client import Cluster, EtcdClient, delete, end_of, put
from dnat.store.etcd.feed import RouterFeed
from dnat.store.etcd.store import EtcdStore
from dnat.types import PortRange, Protocol


class Router:
    """A router whose maps are a dictionary."""

    def __init__(self, feed: RouterFeed) -> None:
        self.feed = feed
        self.pool: PublishedPool | None = None
        self.owners: dict[int, LeaseRecord] = {}
        self.refreshed = 0
        self.lost = False

    def changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, PutLease):
                self.owners[change.record.id] = change.record
            elif isinstance(change, DropLease):
                self.owners.pop(change.id, None)

    def refresh(
        self, pool: PublishedPool, records: Sequence[LeaseRecord], lost: bool, done: Callable[[], None]
    ) -> None:
        self.pool, self.owners, self.lost = pool, {record.id: record for record in records}, lost
        self.refreshed += 1
        done()


@contextlib.asynccontextmanager
async def following(cluster: Cluster, path: Path, name: str = "10.66.0.1") -> AsyncIterator[Router]:
    feed = RouterFeed(cluster, name, path)
    router = Router(feed)
    try:
        router.pool, records = await feed.open()
        router.lost = feed.lost
        router.owners = {record.id: record for record in records}
        feed.start(router.changed, router.refresh)
        yield router
    finally:
        await feed.stop(leave=False)


@contextlib.asynccontextmanager
async def stored(cluster: Cluster, pool: PublishedPool = POOL, now: float = 1.0) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(cluster, pool)
    await store.open(now)
    try:
        yield store
    finally:
        await store.close()


def test_before_any_server(cluster: Cluster, tmp_path: Path) -> None:
    async def story() -> None:
        with pytest.raises(StoreError, match="start a port server"):
            async with following(cluster, tmp_path / "file"):
                pass

    asyncio.run(story())


def test_a_host_is_answered_when_every_router_has_its_ports(cluster: Cluster, tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            stored(cluster) as store,
            following(cluster, tmp_path / "one") as one,
            following(cluster, tmp_path / "two", "10.66.0.2") as two,
        ):
            await eventually(lambda: store.routers == ("10.66.0.1", "10.66.0.2"), "the server knows of both")
            await store.transact([PutLease(RECORD)])
            assert one.owners == two.owners == {RECORD.id: RECORD}
            await store.transact([PutLease(replace(RECORD, host=OTHER))])
            assert one.owners[RECORD.id].host == two.owners[RECORD.id].host == OTHER
            await store.transact([DropLease(RECORD.id)])
            await eventually(lambda: not one.owners and not two.owners, "both know that it has ended")

    asyncio.run(story())


def test_an_answer_waits_for_a_router_that_is_slow(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The router is there and says that it has not followed; then it says that it has."""

    async def story() -> None:
        router, key = EtcdClient(cluster), cluster.path("live", "routers", "10.66.0.1")
        async with stored(cluster) as store:
            await router.transact([], [put(key, layout.router_value(0))])
            await eventually(lambda: store.routers, "the server knows of it")
            grant = asyncio.create_task(store.transact([PutLease(RECORD)]))
            await eventually(lambda: store.lease(RECORD.id), "the lease is durable")
            renewal = replace(RECORD, expires_at=9999.0)
            assert not grant.done()
            await router.transact([], [put(key, layout.router_value(store.revision))])
            await grant
            await store.transact([PutLease(renewal)])  # no news for a router: waits for none
            monkeypatch.setattr(live, "LAG_SECONDS", 0.2)
            await store.transact([PutLease(replace(RECORD, host=OTHER))])
            monkeypatch.setattr(live, "LAG_SECONDS", 1e9)
            await store.transact([PutLease(RECORD)])  # it was waited for in vain: not again
            await router.transact([], [put(key, layout.router_value(store.revision))])
            await eventually(lambda: store._live.routers["10.66.0.1"] == store.revision, "it has caught up")
            known = store.revision
            grant = asyncio.create_task(store.transact([PutLease(replace(RECORD, host=OTHER))]))
            await eventually(lambda: store.revision > known, "the lease is durable")
            assert not grant.done(), "from now on it is waited for again"
            await router.transact([], [put(key, layout.router_value(store.revision))])
            await grant
        await router.close()

    asyncio.run(story())


def test_another_pool_is_heard_of(cluster: Cluster, tmp_path: Path) -> None:
    async def story() -> None:
        async with stored(cluster), following(cluster, tmp_path / "file") as router:
            assert router.pool == POOL
            other = PublishedPool((IPv4Address("198.51.100.2"),), (PortRange(5000, 5999),))
            async with stored(cluster, other):
                await eventually(lambda: router.pool == other, "the router knows the new pool")

    asyncio.run(story())


def test_one_server_hears_of_an_offence(cluster: Cluster, tmp_path: Path) -> None:
    async def story() -> None:
        heard: list[tuple[IPv4Address, IPv4Address, int, Protocol]] = []
        async with stored(cluster) as one, stored(cluster) as two, following(cluster, tmp_path / "file") as router:
            for store in (one, two):
                store.on_offence(lambda *offence: heard.append(offence))
            await eventually(lambda: one.routers and two.routers, "the router is there")
            for _ in range(10):
                router.feed.report(PHONE, POOL.addresses[0], 4711, Protocol.UDP)
            await eventually(lambda: heard, "a server hears of it")
            await two.transact([PutLease(RECORD)])
            assert heard == [(PHONE, POOL.addresses[0], 4711, Protocol.UDP)]

    asyncio.run(story())


def test_a_watch_goes_on_where_it_was(mortal_etcd: EtcdCluster, prefix: str, tmp_path: Path) -> None:
    """The router's member dies, and comes back knowing what went on; or, the second time, not any more."""
    behind = mortal_etcd.cluster(prefix, (0,))

    async def story() -> None:
        async with (
            stored(mortal_etcd.cluster(prefix, (1, 2))) as store,
            following(behind, tmp_path / "file") as router,
        ):
            await store.transact([PutLease(RECORD)])
            for compact in (False, True):
                mortal_etcd.kill(0)
                await eventually(lambda: not router.feed.describe()["reachable"], "the router notices")
                await store.transact([PutLease(replace(RECORD, id=1, ports=PortRange(2000, 2001)))])
                await store.transact([DropLease(RECORD.id)])
                if compact:
                    # A change more than what is forgotten, for the member may have been a little ahead of its watcher.
                    await store.transact([PutLease(replace(RECORD, id=2, ports=PortRange(3000, 3001)))])
                    kv = rpc.KVStub(store._client._open())
                    await kv.Compact(rpc.CompactionRequest(revision=store.revision))
                mortal_etcd.start(0)
                await eventually(lambda: router.owners == store._mirror.leases, "the router knows all")
                assert router.refreshed == (1 if compact else 0)
                assert not router.lost
                await store.transact([PutLease(RECORD), DropLease(1)])
                await eventually(lambda: router.owners == store._mirror.leases, "and what follows")

    asyncio.run(story())
    mortal_etcd.wait()


def test_while_the_store_is_away_the_file_does(mortal_etcd: EtcdCluster, prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    cluster = mortal_etcd.cluster(prefix)

    async def before() -> None:
        async with stored(cluster) as store, following(cluster, path) as router:
            await store.transact([PutLease(RECORD)])
            await eventually(lambda: router.owners, "the router knows the lease")

    async def away() -> None:
        async with following(cluster, path) as router:
            assert router.feed.from_file and router.pool == POOL and router.owners == {RECORD.id: RECORD}
            mortal_etcd.start()
            async with stored_soon(cluster) as store:
                await store.transact([PutLease(replace(RECORD, id=1, ports=PortRange(2000, 2001)))])
                await eventually(lambda: router.owners == store._mirror.leases, "the router is up to date")
                assert len(router.owners) == 2

    asyncio.run(before())
    mortal_etcd.kill()
    asyncio.run(away())
    mortal_etcd.wait()
    path.write_bytes(path.read_bytes()[:-5])
    mortal_etcd.kill()
    with pytest.raises(StoreError, match="cannot be used instead"):
        asyncio.run(away())
    mortal_etcd.start()
    mortal_etcd.wait()


def test_a_cluster_that_was_made_anew_is_noticed(mortal_etcd: EtcdCluster, prefix: str, tmp_path: Path) -> None:
    cluster = mortal_etcd.cluster(prefix)
    file, old_file = tmp_path / "file", tmp_path / "old"

    async def story() -> None:
        async with stored(cluster) as former, following(cluster, file) as router:
            for number in range(1, 6):
                await former.transact([PutLease(replace(RECORD, id=number, ports=PortRange(number, number)))])
            await eventually(file.exists, "the router has its file")
            shutil.copy(file, old_file)
            mortal_etcd.kill()
            await eventually(lambda: not router.feed.describe()["reachable"], "the router notices")
            mortal_etcd.wipe()
            mortal_etcd.start()
            async with stored_soon(cluster) as store:
                await eventually(lambda: router.refreshed and not router.owners, "no lease stands any more")
                assert router.lost, "so that owners stay in the maps until hosts have registered"
                await store.transact([PutLease(RECORD)])
                await eventually(lambda: router.owners == {RECORD.id: RECORD}, "the router follows the new one")
            with pytest.raises(StoreConflict):
                await former.transact([PutLease(RECORD)])
            for again in (former.catch_up(), former.open(1.0)):
                with pytest.raises(StoreError, match="restart the server"):
                    await again
            async with following(cluster, old_file, "10.66.0.2") as another:
                assert another.lost and not another.feed.from_file, "a router that starts only now knows by its file"

    asyncio.run(story())
    mortal_etcd.wait()


def test_keys_removed_by_hand_are_no_reason_to_grant_twice(cluster: Cluster) -> None:
    async def story() -> None:
        async with stored(cluster) as store:
            await store.transact([PutLease(RECORD)])
            await store._client.transact([], [delete(cluster.path(""), end_of(cluster.path("")))])
            with pytest.raises(StoreConflict):
                await store.transact([PutLease(replace(RECORD, id=1))])
            with pytest.raises(StoreError, match="restart the server"):
                await store.catch_up()

    asyncio.run(story())


@contextlib.asynccontextmanager
async def stored_soon(cluster: Cluster) -> AsyncIterator[EtcdStore]:
    """A store in a cluster that is starting."""
    for _ in range(30):
        with contextlib.suppress(StoreError):
            client = EtcdClient(cluster)
            await client.get(b"nothing")
            await client.close()
            break
    async with stored(cluster, now=2.0) as store:
        yield store
