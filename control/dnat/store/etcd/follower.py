"""Follows the keys below a prefix: reads them once, then hears of changes, whatever member fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dnat.store.base import StoreError
from dnat.store.etcd.client import Compacted, EtcdClient

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.3
"""Before the cluster is asked again after a failure."""


class Follows(Protocol):
    """What is kept up to date."""

    @property
    def revision(self) -> int:
        """All changes up to it are known; 0 before the first reading."""

    @property
    def cluster(self) -> int:
        """The cluster that was read from."""

    def reread(self, pairs: Sequence[Any], header: Any) -> None:
        """All pairs at the header's revision. May raise StoreError."""

    def heard(self, events: Sequence[Any]) -> None:
        """Changes in their order, those of a transaction together. May raise StoreError."""


class Follower:
    """One watch, begun again where it ended, or with a reading where that is not possible."""

    def __init__(self, client: EtcdClient, prefix: bytes, follows: Follows) -> None:
        self._client = client
        self._prefix = prefix
        self._follows = follows
        self._task: asyncio.Task[None] | None = None
        self.reachable = False
        """Whether the watch stands."""
        self.on_reachable: Callable[[], None] = lambda: None

    async def read(self) -> None:
        """Read everything. Raises StoreError."""
        self._follows.reread(*await self._client.read(self._prefix))

    def start(self) -> None:
        """Follow from `Follows.revision` on, which may have been long ago."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self.reachable = False

    async def _run(self) -> None:
        readable, said = True, False
        while True:
            try:
                if not (readable and await self._resumable()):
                    await self.read()
                    readable = True
                async for answer in self._client.watch(self._prefix, self._follows.revision + 1):
                    if not self.reachable:
                        self.reachable = True
                        self.on_reachable()
                        if said:
                            log.info("following the lease store again")
                            said = False
                    if answer.events:
                        self._follows.heard(answer.events)
            except Compacted:
                log.info("the lease store has forgotten what we did not hear of: reading everything")
                readable = False
            except StoreError as error:
                if not said:
                    log.warning("%s", error)
                    said = True
            except Exception:
                log.exception("could not take in what the lease store says")
                readable = False
            self.reachable = False
            await asyncio.sleep(PAUSE_SECONDS)

    async def _resumable(self) -> bool:
        """Whether this is the cluster that was read from, and not one that was made anew."""
        _, header = await self._client.get(self._prefix)
        known = self._follows
        return bool(known.revision and header.cluster_id == known.cluster and header.revision >= known.revision)
