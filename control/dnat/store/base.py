"""What a lease store does: open, transact durably, tell watchers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dnat.errors import PlatformError
from dnat.leases.records import Change, HoldRecord, LeaseRecord
from dnat.store.history import Period, Tenure


class StoreError(PlatformError):
    """The store could not be opened or could not make a change durable."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything a store held when it was opened."""

    records: tuple[LeaseRecord, ...]
    holds: tuple[HoldRecord, ...]
    epoch_start: float
    """Wall-clock seconds when this store was first made: the server's epoch counts from here (RFC 6887, 8.5)."""


Watcher = Callable[[Sequence[Change]], None]


class Store(Protocol):
    """Leases, durable and watched. All coroutines run on one event loop."""

    async def open(self, now: float) -> State:
        """Open or create the store. Raises StoreError."""

    async def transact(self, changes: Sequence[Change]) -> None:
        """Make changes durable, all or none, then tell every watcher, then return. Raises StoreError."""

    def watch(self, watcher: Watcher) -> None:
        """Call ``watcher`` on the event loop with the changes of each transaction once it is durable."""

    async def tenures(self, period: Period) -> list[Tenure]:
        """Who held what in a period, the oldest first. Raises StoreError."""

    async def close(self) -> None:
        """Finish what is under way and let go of the store."""
