"""A copy of the cluster's ``table/`` in memory, as of one revision. No I/O: pairs and events in, changes out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dnat.leases.records import (
    Change,
    DropHold,
    DropLease,
    HoldKey,
    HoldRecord,
    LeaseRecord,
    PutHold,
    PutLease,
    outcome,
)
from dnat.store.base import PublishedPool, StoreError, many_records
from dnat.store.etcd import layout

DELETE = 1
"""The type of an event that removes a key; the other is that of a put."""


class Mirror:
    """Leases and holds of one LAN."""

    def __init__(self, prefix: str) -> None:
        self._table = f"{prefix}table/"
        self.leases: dict[int, LeaseRecord] = {}
        self.since: dict[int, float] = {}
        """When each lease's holder came to its present LAN address."""
        self.holds: dict[HoldKey, HoldRecord] = {}
        self.pool: PublishedPool | None = None
        self.epoch_start: float | None = None
        self.fence = 0
        """Revision of the last change of leases or holds."""
        self.revision = 0
        """Everything up to it is in here."""
        self.cluster = 0
        """Which cluster this was read from."""

    def read(self, pairs: Iterable[Any], header: Any) -> list[Change]:
        """Become what a reading of ``table/`` says; returns what that changes. Raises StoreError."""
        fresh = Mirror("")
        fresh._table = self._table
        with many_records():
            for pair in pairs:
                fresh._take(pair.key.decode(), pair.value, pair.mod_revision)
        changes = self._towards(fresh)
        self.leases, self.since, self.holds = fresh.leases, fresh.since, fresh.holds
        self.pool, self.epoch_start, self.fence = fresh.pool, fresh.epoch_start, fresh.fence
        self.revision, self.cluster = header.revision, header.cluster_id
        return changes

    def events(self, events: Iterable[Any]) -> list[Change]:
        """Take in what a watch of ``table/`` says; what is known already is passed over. Raises StoreError."""
        changes: list[Change] = []
        revision = self.revision
        for event in events:
            pair = event.kv
            if pair.mod_revision <= self.revision:
                continue
            revision = pair.mod_revision
            value = None if event.type == DELETE else pair.value
            if (change := self._take(pair.key.decode(), value, revision)) is not None:
                changes.append(change)
        self.revision = revision
        return changes

    def committed(self, changes: Iterable[Change], since: dict[int, float], revision: int) -> None:
        """Take in a transaction of our own, which was the fence's last change."""
        leases, holds = outcome(changes)
        for lease_id, record in leases.items():
            if record is None:
                self.leases.pop(lease_id, None)
                self.since.pop(lease_id, None)
            else:
                self.leases[lease_id] = record
        for key, hold in holds.items():
            if hold is None:
                self.holds.pop(key, None)
            else:
                self.holds[key] = hold
        self.since |= {lease_id: at for lease_id, at in since.items() if lease_id in self.leases}
        self.fence = self.revision = revision

    def _take(self, key: str, value: bytes | None, revision: int) -> Change | None:
        kind, _, name = key.removeprefix(self._table).partition("/")
        try:
            match kind:
                case "leases":
                    return self._take_lease(name, value)
                case "holds":
                    return self._take_hold(name, value)
                case "fence":
                    self.fence = revision
                case "epoch":
                    self.epoch_start = float(value) if value else None
                case "pool":
                    self.pool = layout.pool(value) if value else None
        except (ValueError, KeyError) as error:  # msgspec's errors are ValueErrors
            raise StoreError(
                f"the lease store holds something unreadable under {key} ({error}). Nothing was changed. Was it written"
                " by another version of dnat? If it is damaged: etcdctl del it, its host then registers again"
            ) from None
        return None

    def _take_lease(self, name: str, value: bytes | None) -> Change:
        if value is None:
            lease_id = int(name, 16)
            self.leases.pop(lease_id, None)
            self.since.pop(lease_id, None)
            return DropLease(lease_id)
        record, since = layout.lease(name, value)
        self.leases[record.id], self.since[record.id] = record, since
        return PutLease(record)

    def _take_hold(self, name: str, value: bytes | None) -> Change:
        if value is None:
            key = layout.hold_key(name)
            self.holds.pop(key, None)
            return DropHold(*key)
        hold = layout.hold(name, value)
        self.holds[hold.key] = hold
        return PutHold(hold)

    def _towards(self, other: Mirror) -> list[Change]:
        changes: list[Change] = [DropLease(each) for each in self.leases if each not in other.leases]
        changes += [DropHold(*key) for key in self.holds if key not in other.holds]
        changes += [PutLease(each) for each in other.leases.values() if self.leases.get(each.id) != each]
        changes += [PutHold(each) for each in other.holds.values() if self.holds.get(each.key) != each]
        return changes
