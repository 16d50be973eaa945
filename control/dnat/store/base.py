"""What a lease store does: open, transact durably, tell watchers."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol, runtime_checkable

from dnat.errors import PlatformError
from dnat.leases.records import Change, HoldKey, HoldRecord, LeaseRecord
from dnat.store.history import Period, Tenure
from dnat.types import PortRange


class StoreError(PlatformError):
    """The store could not be opened or could not make a change durable."""


class StoreConflict(StoreError):
    """Another server changed the leases first; nothing of this transaction counts. See `SharedStore`."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything a store held when it was opened."""

    records: tuple[LeaseRecord, ...]
    holds: tuple[HoldRecord, ...]
    epoch_start: float
    """Wall-clock seconds when this store was first made: the server's epoch counts from here (RFC 6887, 8.5)."""


@contextlib.contextmanager
def many_records() -> Iterator[None]:
    """While tens of thousands of records are made: none is garbage, and looking for some takes half of the time.

    May be nested, and entered by another thread meanwhile.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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


@dataclass(frozen=True, slots=True)
class PublishedPool:
    """What routers have to know of the servers' pool."""

    addresses: tuple[IPv4Address, ...]
    ports: tuple[PortRange, ...]
    """All that may be leased."""


@runtime_checkable
class SharedStore(Store, Protocol):
    """A store that other servers change, too: what rests on leases and holds that have changed since is not written.

    `transact` raises StoreConflict unless the store is as its `foreign` listener was told last: if the listener heard
    anything after what is to be written was decided, decide again without trying. After a conflict `catch_up`,
    and take what was decided back to what `lease` and `hold` say.
    """

    @property
    def reachable(self) -> bool:
        """Whether changes by others are heard of now."""

    def foreign(self, listener: Watcher) -> None:
        """Call ``listener`` on the event loop with what other servers have changed."""

    async def catch_up(self) -> None:
        """Wait until all is known that others have changed by now. Raises StoreError."""

    def lease(self, lease_id: int) -> LeaseRecord | None:
        """A lease as the store has it."""

    def hold(self, key: HoldKey) -> HoldRecord | None:
        """A hold as the store has it."""
