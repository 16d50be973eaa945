"""The lease store of port servers that share a cluster: `dnat.store.base.SharedStore` on etcd.

Every transaction of leases or holds also writes the key ``fence``, and is made on condition that nobody else has since
this server's copy of them was up to date. So what a server decided by its copy is written only if the copy was
the truth, whoever else was deciding at the same time.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dnat.leases.records import Change, DropHold, DropLease, HoldKey, LeaseRecord, PutHold, PutLease
from dnat.leases.records import HoldRecord as Hold
from dnat.store.base import PublishedPool, State, StoreConflict, StoreError, Watcher
from dnat.store.etcd import layout
from dnat.store.etcd.client import Cluster, EtcdClient, delete, end_of, equals, fetch, put, unchanged
from dnat.store.etcd.follower import Follower
from dnat.store.etcd.live import Live, OffenceListener
from dnat.store.etcd.mirror import Mirror
from dnat.store.history import PRUNE_SECONDS, RETENTION, Period, Tenure

CATCH_UP_SECONDS = 1.0
"""How long the watch may take to tell what another server wrote, before everything is read instead."""
FULL = 96
"""Keys after which a transaction is closed where that is possible; etcd takes 128 operations unless told otherwise."""


class EtcdStore:
    """Leases in etcd, and a copy of them in memory."""

    def __init__(
        self,
        cluster: Cluster,
        pool: PublishedPool,
        retention: float = RETENTION,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``pool``: published for routers; ``retention``: seconds that the log keeps what has ended."""
        self._client = EtcdClient(cluster)
        self._pool = pool
        self._retention = retention
        self._clock = clock
        self._path = cluster.path
        self._mirror = Mirror(cluster.prefix)
        self._follower = Follower(self._client, self._path("table", ""), self)
        self._live = Live(self._client)
        self._watchers: list[Watcher] = []
        self._listeners: list[Watcher] = []
        self._name = secrets.token_hex(8)
        self._transactions = 0
        self._epoch: float | None = None
        """Of the store that was opened first."""
        self._busy = False
        self._moved = asyncio.Event()
        self._deferred: list[Callable[[], None]] = []
        self._prune_at = 0.0

    # The store

    async def open(self, now: float) -> State:
        """Read what the cluster has; make the store when there is none. Raises StoreError."""
        await self._follower.stop()
        await self._live.stop()
        self._deferred = []
        epoch, pool = self._path("table", "epoch"), self._path("table", "pool")
        await self._client.transact([unchanged(epoch, 0)], [put(epoch, repr(now).encode())])
        self._mirror.read(*await self._client.read(self._path("table", "")))
        self._epoch = self._epoch if self._epoch is not None else self._mirror.epoch_start
        if self._mirror.epoch_start != self._epoch:
            raise self._made_anew()
        if self._mirror.pool != self._pool:
            await self._client.transact([], [put(pool, layout.pool_value(self._pool))])
        await self._live.follower.read()
        self._follower.start()
        self._live.follower.start()
        assert self._mirror.epoch_start is not None
        return State(tuple(self._mirror.leases.values()), tuple(self._mirror.holds.values()), self._mirror.epoch_start)

    def watch(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)

    async def transact(self, changes: Sequence[Change]) -> None:
        """As `SharedStore.transact`; returns when the routers that are there have the owners in their maps, too.

        More than etcd takes at once is written in several transactions. If a later one fails, the earlier
        ones stand: each leaves leases and holds that belong together.
        """
        self._busy = True
        try:
            revision = 0
            for part in _parts(changes):
                new_owners = self._has_new_owner(part)
                await self._write(part)
                revision = self._mirror.revision if new_owners else revision
                for watcher in self._watchers:
                    watcher(part)
        finally:
            self._busy = False
            deferred, self._deferred = self._deferred, []
            for each in deferred:
                each()
        if revision:
            await self._live.wait_for_routers(revision)

    async def tenures(self, period: Period) -> list[Tenure]:
        """What the log says about a period. Raises StoreError."""
        start = self._path("history", layout.history_from(period.since))
        pairs, _ = await self._client.read(start, end_of(self._path("history", "")))
        found = [layout.tenure(pair.value) for pair in pairs]
        found += [layout.standing(each, self._mirror.since[each.id]) for each in self._mirror.leases.values()]
        return sorted((each for each in found if period.touches(each)), key=lambda each: each.since)

    async def close(self) -> None:
        await self._follower.stop()
        await self._live.stop()
        await self._client.close()

    # Shared with others

    def foreign(self, listener: Watcher) -> None:
        self._listeners.append(listener)

    async def catch_up(self) -> None:
        epoch, _ = await self._client.get(self._path("table", "epoch"))
        if epoch is None or epoch.value != repr(self._epoch).encode():
            raise self._made_anew()
        pair, _ = await self._client.get(self._path("table", "fence"))
        try:
            async with asyncio.timeout(CATCH_UP_SECONDS):
                while pair is not None and self._mirror.fence < pair.mod_revision:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            await self._follower.read()

    def lease(self, lease_id: int) -> LeaseRecord | None:
        return self._mirror.leases.get(lease_id)

    def hold(self, key: HoldKey) -> Hold | None:
        return self._mirror.holds.get(key)

    def on_offence(self, listener: OffenceListener) -> None:
        """Call ``listener`` with what routers elsewhere report; one server hears of each."""
        self._live.on_offence = listener

    @property
    def reachable(self) -> bool:
        """Whether the cluster answers."""
        return self._follower.reachable

    @property
    def routers(self) -> tuple[str, ...]:
        """LAN addresses of the routers that follow."""
        return tuple(sorted(self._live.routers))

    # What the follower says

    @property
    def revision(self) -> int:
        return self._mirror.revision

    @property
    def cluster(self) -> int:
        return self._mirror.cluster

    def reread(self, pairs: Sequence[Any], header: Any) -> None:
        def take() -> list[Change]:
            return [] if header.revision < self._mirror.revision else self._mirror.read(pairs, header)

        self._later(take)

    def heard(self, events: Sequence[Any]) -> None:
        self._later(lambda: self._mirror.events(events))

    @staticmethod
    def _made_anew() -> StoreError:
        """A server that goes on would not tell hosts that their leases were lost: it has to begin anew, too."""
        return StoreError(
            "what the lease store held when this server started is lost, for etcd was made anew or its keys removed:"
            " restart the server (systemctl restart dnat), and hosts register what they hold"
        )

    def _later(self, take: Callable[[], list[Change]]) -> None:
        """Take in what others changed; while a transaction of ours is under way, after it, for that may come first."""

        def act() -> None:
            changes = take()
            self._moved.set()
            if changes:
                for listener in (*self._watchers, *self._listeners):
                    listener(changes)

        if self._busy:
            self._deferred.append(act)
        else:
            act()

    # Writing

    async def _write(self, changes: Sequence[Change]) -> None:
        now = self._clock()
        writes, since = self._writes(changes, now)
        operations = [delete(key) if value is None else put(key, value) for key, value in writes.items()]
        if now >= self._prune_at:
            start = self._path("history", "")
            operations.append(delete(start, self._path("history", layout.history_from(now - self._retention))))
        self._transactions += 1
        fence, token = self._path("table", "fence"), f"{self._name}-{self._transactions}".encode()
        answer = await self._client.transact(
            [unchanged(fence, self._mirror.fence), equals(self._path("table", "epoch"), repr(self._epoch).encode())],
            [put(fence, token), *operations],
            [fetch(fence)],
        )
        revision = answer.header.revision
        if not answer.succeeded:
            last = answer.responses[0].response_range.kvs
            if not last or last[0].value != token:
                raise StoreConflict("another server changed the leases first")
            # It was a repeat: the first attempt had gone through, only its answer was lost.
            revision = last[0].mod_revision
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_SECONDS
        self._mirror.committed(changes, since, revision)

    def _writes(self, changes: Sequence[Change], now: float) -> tuple[dict[bytes, bytes | None], dict[int, float]]:
        """Keys with their new values (None: none any more), and since when holders are where they are."""
        writes: dict[bytes, bytes | None] = {}
        known: dict[int, LeaseRecord | None] = {}
        since: dict[int, float] = {}
        for change in changes:
            match change:
                case PutLease(record):
                    former = known.get(record.id, self._mirror.leases.get(record.id))
                    if former is None or former.host != record.host:
                        self._end_tenure(former, since, now, writes)
                        since[record.id] = now
                    else:
                        since.setdefault(record.id, self._mirror.since.get(record.id, now))
                    known[record.id] = record
                    key = self._path("table", "leases", layout.lease_name(record.id))
                    writes[key] = layout.lease_value(record, since[record.id])
                case DropLease(lease_id):
                    self._end_tenure(known.get(lease_id, self._mirror.leases.get(lease_id)), since, now, writes)
                    known[lease_id] = None
                    writes[self._path("table", "leases", layout.lease_name(lease_id))] = None
                case PutHold(hold):
                    writes[self._path("table", "holds", layout.hold_name(hold.key))] = layout.hold_value(hold)
                case DropHold(address, ports, protocol):
                    writes[self._path("table", "holds", layout.hold_name((address, ports, protocol)))] = None
        return writes, since

    def _end_tenure(
        self, record: LeaseRecord | None, since: dict[int, float], now: float, writes: dict[bytes, bytes | None]
    ) -> None:
        if record is None:
            return
        start = since.get(record.id, self._mirror.since.get(record.id, record.granted_at))
        until = max(start, now)
        key = self._path("history", layout.tenure_name(until, record.id, start))
        writes[key] = layout.tenure_value(record, start, until)

    def _has_new_owner(self, changes: Sequence[Change]) -> bool:
        """Whether a router has to know of any of this before the answer leaves."""
        for change in changes:
            if isinstance(change, PutLease):
                former = self._mirror.leases.get(change.record.id)
                if former is None or former.host != change.record.host:
                    return True
        return False


def _parts(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """Pieces of at most about FULL keys; what belongs to one grant or one end of a lease is never cut."""
    part: list[Change] = []
    weight = 0
    for change in changes:
        if weight >= FULL and _may_be_cut(part[-1], change):
            yield part
            part, weight = [], 0
        part.append(change)
        weight += 2 if isinstance(change, DropLease) else 1
    if part:
        yield part


def _may_be_cut(last: Change, following: Change) -> bool:
    """An ended lease is followed by its hold; a granted one comes after the holds that it lifts."""
    if isinstance(last, DropLease) or isinstance(following, PutHold):
        return False
    return isinstance(last, PutLease) or not isinstance(following, PutLease)
