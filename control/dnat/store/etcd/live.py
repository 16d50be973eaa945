"""Routers that are there, and offences that they saw: the side of the servers (the other is `dnat.store.etcd.feed`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Any

from dnat.store.base import StoreError
from dnat.store.etcd import layout
from dnat.store.etcd.client import EtcdClient, delete, unchanged
from dnat.store.etcd.follower import Follower
from dnat.store.etcd.mirror import DELETE
from dnat.types import Protocol

log = logging.getLogger(__name__)

ROUTER_TTL = 4
"""Seconds after which a router that says nothing counts as gone."""
LAG_SECONDS = ROUTER_TTL + 2.0
"""So long an answer waits for routers at most: etcd notices that a router has gone a little later than it should."""

OffenceListener = Callable[[IPv4Address, IPv4Address, int, Protocol], None]


class Live:
    """Follows ``live/``."""

    def __init__(self, client: EtcdClient) -> None:
        self.revision = 0
        self.cluster = 0
        self.routers: dict[str, int] = {}
        """By LAN address: the revision up to which a router has the owners in its maps."""
        self._late: dict[str, int] = {}
        self.on_offence: OffenceListener = lambda *_: None
        self._client = client
        self._prefix = client.cluster.path("live", "")
        self._moved = asyncio.Event()
        self._claims: set[asyncio.Task[None]] = set()
        self.follower = Follower(client, self._prefix, self)

    def reread(self, pairs: Sequence[Any], header: Any) -> None:
        self.routers = {}
        self.revision, self.cluster = header.revision, header.cluster_id
        for pair in pairs:
            self._take(pair, deleted=False)
        self._moved.set()

    def heard(self, events: Sequence[Any]) -> None:
        for event in events:
            self.revision = max(self.revision, event.kv.mod_revision)
            self._take(event.kv, deleted=event.type == DELETE)
        self._moved.set()

    async def wait_for_routers(self, revision: int) -> None:
        """Return when every router that is there has followed so far, or is taken to be gone."""
        try:
            async with asyncio.timeout(LAG_SECONDS):
                while self._behind(revision):
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            for name in self._behind(revision):
                self._late[name] = revision
                log.warning("the router %s does not follow the lease store: answering without it", name)

    def _behind(self, revision: int) -> list[str]:
        """The routers to wait for. One that was waited for in vain is not again before it has caught up."""
        self._late = {name: missed for name, missed in self._late.items() if self.routers.get(name, missed) < missed}
        return [name for name, each in self.routers.items() if each < revision and name not in self._late]

    async def stop(self) -> None:
        await self.follower.stop()
        for task in self._claims:
            task.cancel()
        await asyncio.gather(*self._claims, return_exceptions=True)

    def _take(self, pair: Any, *, deleted: bool) -> None:
        kind, _, name = pair.key[len(self._prefix) :].decode().partition("/")
        try:
            if kind == "routers" and deleted:
                self.routers.pop(name, None)
            elif kind == "routers":
                self.routers[name] = layout.router(pair.value)
            elif kind == "offences" and not deleted:
                task = asyncio.create_task(self._claim(pair.key, pair.mod_revision, layout.offence(pair.value)))
                self._claims.add(task)
                task.add_done_callback(self._claims.discard)
        except ValueError as error:
            log.warning("unreadable in the lease store: %s (%s)", pair.key.decode(), error)

    async def _claim(self, key: bytes, revision: int, offence: tuple[IPv4Address, IPv4Address, int, Protocol]) -> None:
        """One server tells the host: the one that removes the key."""
        try:
            answer = await self._client.transact([unchanged(key, revision)], [delete(key)])
        except StoreError:
            return
        if answer.succeeded:
            self.on_offence(*offence)
