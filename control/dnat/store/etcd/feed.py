"""What a router follows the leases by: the cluster's ``table/``, and a file that stands in for it while it is away.

The router says under ``live/routers/`` how far it has followed, so that servers know when a host may be answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from dnat import files
from dnat.leases.records import LeaseRecord, PutLease
from dnat.store.base import PublishedPool, StoreError, Watcher
from dnat.store.etcd import layout
from dnat.store.etcd.client import Cluster, EtcdClient, put
from dnat.store.etcd.follower import Follower
from dnat.store.etcd.live import ROUTER_TTL
from dnat.store.etcd.mirror import Mirror
from dnat.types import Protocol

log = logging.getLogger(__name__)

Refresh = Callable[[PublishedPool, Sequence[LeaseRecord], bool, Callable[[], None]], None]
"""Pool, leases, whether the store was lost and is new, and what to call when they are in the maps."""
SAVE_SECONDS = 1.0
"""Changes of the leases are saved in a file so much later, all of that time together."""
OFFENCE_SECONDS = 1.0
"""The same host's offence is reported once in so many seconds; servers limit what they tell hosts, too."""
OFFENCES_KEPT = 1024


class RouterFeed:
    """Leases and pool as the servers have them. `open`, then `start` with who wants to hear of changes."""

    def __init__(self, cluster: Cluster, name: str, path: Path) -> None:
        """``name``: the router's LAN address; ``path``: of the file."""
        self._client = EtcdClient(cluster)
        self._path = cluster.path
        self._name = name
        self._file = path
        self._mirror = Mirror(cluster.prefix)
        self._follower = Follower(self._client, self._path("table", ""), self)
        self._changed: Watcher = lambda _: None
        self._refresh: Refresh = lambda *_: None
        self._epoch: float | None = None
        """When the store began that the maps are filled from."""
        self._save_due: asyncio.TimerHandle | None = None
        self._saving = asyncio.Lock()
        self._news = asyncio.Event()
        self._followed = 0
        """The maps have everything up to this revision."""
        self._filling = 0
        """How often they are being filled anew."""
        self._presence = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._offences: dict[tuple[IPv4Address, int], float] = {}
        self._reported = 0
        self.from_file = False
        """Whether `open` had to do with the file."""
        self.lost = False
        """Whether `open` found another store than the one that the file was made from."""

    async def open(self) -> tuple[PublishedPool, Sequence[LeaseRecord]]:
        """The pool and the leases: the cluster's, or those of the file when that is away.

        From here on servers wait for this router. Raises StoreError if there is neither, or no server has published
        a pool yet.
        """
        try:
            await self._say_present()
            self._mirror.read(*await self._client.read(self._path("table", "")))
            self.lost = self._epoch_of_file() not in (None, self._mirror.epoch_start)
        except StoreError as error:
            self._load_file(error)
        if self._mirror.pool is None:
            raise StoreError(
                "the lease store says nothing of a pool yet: start a port server that uses it, with this store.prefix"
            )
        self._epoch = self._mirror.epoch_start
        return self._mirror.pool, tuple(self._mirror.leases.values())

    def start(self, changed: Watcher, refresh: Refresh) -> None:
        """Everything that `open` returned is in the maps. From now on tell of changes, on the event loop: of single
        ones (``changed``), or of what there is (``refresh``), after a gap in what was heard or another pool.
        """
        self._changed, self._refresh = changed, refresh
        self._caught_up()
        self._save_soon()
        self._follower.start()
        self._run(self._be_present())

    async def stop(self, *, leave: bool) -> None:
        """``leave``: servers need not wait for this router any more; else they do so until it counts as gone."""
        await self._follower.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._save_due is not None:
            self._save_due.cancel()
            await self._save()
        if leave and self._presence:
            with contextlib.suppress(StoreError):
                await self._client.revoke(self._presence)
        await self._client.close()

    def report(self, host: IPv4Address, address: IPv4Address, port: int, protocol: Protocol) -> None:
        """Let a server tell a host that it used a port which is not its own."""
        now = asyncio.get_running_loop().time()
        if now < self._offences.get((host, port), 0.0) + OFFENCE_SECONDS:
            return
        if len(self._offences) >= OFFENCES_KEPT:
            self._offences = {each: at for each, at in self._offences.items() if now < at + OFFENCE_SECONDS}
        if len(self._offences) < OFFENCES_KEPT and self._presence:
            self._offences[host, port] = now
            self._run(self._report(layout.offence_value(host, address, port, protocol)))

    def describe(self) -> dict[str, Any]:
        """For ``show``."""
        return {"kind": "etcd", "reachable": self._follower.reachable, "revision": self._mirror.revision}

    # What the follower says

    @property
    def revision(self) -> int:
        return self._mirror.revision

    @property
    def cluster(self) -> int:
        return self._mirror.cluster

    def reread(self, pairs: Sequence[Any], header: Any) -> None:
        self._mirror.read(pairs, header)
        self._refreshed()

    def heard(self, events: Sequence[Any]) -> None:
        pool = self._mirror.pool
        changes = self._mirror.events(events)
        if self._mirror.pool != pool:
            self._refreshed()
            return
        if changes:
            self._changed(changes)
            self._save_soon()
        if any(isinstance(change, PutLease) for change in changes):
            self._caught_up()

    def _refreshed(self) -> None:
        if self._mirror.pool is not None:
            lost, self._epoch = self._mirror.epoch_start != self._epoch, self._mirror.epoch_start
            self._filling += 1
            self._refresh(self._mirror.pool, tuple(self._mirror.leases.values()), lost, self._filled)
            self._save_soon()

    def _filled(self) -> None:
        self._filling -= 1
        self._caught_up()

    def _caught_up(self) -> None:
        """Let servers know how far the maps are, unless they are just being filled."""
        if not self._filling:
            self._followed = self._mirror.revision
            self._news.set()

    # Being there

    async def _be_present(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                if loop.time() >= due:
                    if not (self._presence and await self._client.keep_alive(self._presence)):
                        await self._say_present()
                        self._news.set()
                    due = loop.time() + ROUTER_TTL / 4
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await self._news.wait()
                if self._news.is_set():
                    self._news.clear()
                    await self._say(self._followed)
            except StoreError:
                self._presence = 0
                await asyncio.sleep(ROUTER_TTL / 4)

    async def _say_present(self) -> None:
        self._presence = await self._client.grant(ROUTER_TTL)
        await self._say(0)

    async def _say(self, revision: int) -> None:
        key = self._path("live", "routers", self._name)
        await self._client.transact([], [put(key, layout.router_value(revision), self._presence)])

    async def _report(self, value: bytes) -> None:
        self._reported += 1
        key = self._path("live", "offences", self._name, str(self._reported))
        with contextlib.suppress(StoreError):
            await self._client.transact([], [put(key, value, self._presence)])

    def _run(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The file

    def _save_soon(self) -> None:
        if self._save_due is None:
            loop = asyncio.get_running_loop()
            self._save_due = loop.call_later(SAVE_SECONDS, lambda: self._run(self._save()))

    async def _save(self) -> None:
        self._save_due = None
        mirror = self._mirror
        if mirror.pool is None or mirror.epoch_start is None:
            return
        leases = [(record, mirror.since[record.id]) for record in mirror.leases.values()]
        try:
            async with self._saving:
                await asyncio.to_thread(_write, self._file, mirror.epoch_start, mirror.pool, leases)
        except OSError as error:
            log.warning("%s cannot be written (%s): without it this router needs the store to start", self._file, error)

    def _epoch_of_file(self) -> float | None:
        try:
            return layout.snapshot(self._file.read_bytes())[0]
        except (OSError, ValueError, KeyError):
            return None

    def _load_file(self, reason: StoreError) -> None:
        mirror = self._mirror
        try:
            mirror.epoch_start, mirror.pool, leases = layout.snapshot(self._file.read_bytes())
        except FileNotFoundError:
            raise reason from None
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(f"{reason}; and {self._file} cannot be used instead: {error}") from None
        # The revision stays 0: as soon as the cluster is back, everything is read.
        mirror.leases = {record.id: record for record, _ in leases}
        mirror.since = {record.id: since for record, since in leases}
        self.from_file = True
        log.warning("%s: going on with the %d leases of %s", reason, len(leases), self._file)


def _write(path: Path, epoch_start: float, pool: PublishedPool, leases: list[tuple[LeaseRecord, float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, layout.snapshot_value(epoch_start, pool, leases), durable=True)
