"""A port server beside others: takes in what they change, and decides again what they overtook."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dnat.daemon.clock import SteadyClock
from dnat.leases.records import Change, outcome
from dnat.pap.answers import Step
from dnat.pap.keyring import KeyChange
from dnat.pap.server import Server
from dnat.store import KeyStore, SharedKeyStore, SharedStore, Store, StoreConflict


class Sharing:
    """What a server role has to do because others change its store; with a store of its own, nothing.

    While a transaction is under way, others' changes are put aside: whether it came before them, its outcome tells.
    """

    def __init__(
        self, store: Store, key_store: KeyStore | SharedKeyStore, core: Callable[[], Server], clock: SteadyClock
    ) -> None:
        self._store = store if isinstance(store, SharedStore) else None
        self._core = core
        self._clock = clock
        self._aside: list[Change] = []
        self._keys_aside: list[KeyChange] = []
        self._committing = True  # until the role has a table
        self.take: Callable[[], list[Step]] = list
        """Gives the steps that the role has not begun to commit."""
        self.decided: Callable[[], None] = lambda: None
        """Called when something was decided again."""
        if self._store is not None:
            self._store.foreign(self._heard)
        if isinstance(key_store, SharedKeyStore):
            key_store.foreign(self._heard_of_keys)

    def begin(self) -> None:
        """The role takes steps and is going to commit them."""
        self._committing = True

    def check(self) -> None:
        """Just before the transaction. Raises StoreConflict if the steps are overtaken already."""
        if self._aside:
            raise StoreConflict("another server changed the leases first")

    async def overtaken(self, steps: Sequence[Step]) -> None:
        """The store refused the steps, for another server was first. Raises StoreError."""
        assert self._store is not None
        await self._store.catch_up()
        self.end(steps)

    def end(self, steps: Sequence[Step] = ()) -> None:
        """The transaction is over; ``steps`` of it have to be decided again."""
        self._committing = False
        if self._keys_aside and (guard := self._core().guard) is not None:
            guard.keyring.follow(self._keys_aside)
            self._keys_aside = []
        if self._aside or steps:
            changes, self._aside = self._aside, []
            core = self._core()
            core.overtaken([*steps, *self.take()], lambda undone: self._correct([*changes, *undone]), self._clock())
            self.decided()

    def reloaded(self) -> None:
        """Table and keys were read from the stores, in this order, a moment ago."""
        self._keys_aside = []
        self.end()

    def _heard(self, changes: Sequence[Change]) -> None:
        self._aside += changes
        if not self._committing:
            self.end()

    def _heard_of_keys(self, changes: Sequence[KeyChange]) -> None:
        self._keys_aside += changes
        if not self._committing:
            self.end()

    def _correct(self, changes: Iterable[Change]) -> None:
        """Take whatever these changes touch to what the store has."""
        assert self._store is not None
        leases, holds = outcome(changes)
        self._core().table.correct(
            {each: self._store.lease(each) for each in leases}, {each: self._store.hold(each) for each in holds}
        )
