"""The server's keys: which host has which, which are being replaced, which are revoked. A store keeps the records.

A key is bound to one host identity: that which it was made for, or the first that it comes with. A host may have
two good keys while one replaces the other.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from dnat.errors import UsageError
from dnat.pap.auth import SECRET_LENGTH, Key
from dnat.pap.backoff import Draw

OVERLAP = 120.0
"""Seconds that a key stays good after its successor was used first: longer than a datagram is under way."""
UNUSED = 3600.0
"""Seconds after which a key that was agreed on, and never used, is forgotten."""
UNUSED_KEPT = 3
"""So many of those of one host."""
MAX_KEYS = 65536


class KeyState(enum.Enum):
    """Where a key is in its life."""

    NEW = "new"
    """Never used."""
    ACTIVE = "active"
    RETIRING = "retiring"
    """Its successor is in use; it ends at ``until``."""
    REVOKED = "revoked"
    """Kept so that its host is refused."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key as the server stores it."""

    key: Key
    name: str
    """For people; the keys of one host share it."""
    host_id: bytes | None
    """None until it is used first."""
    state: KeyState
    agreed: bool
    """Agreed on over the network, not made by an operator."""
    created_at: float
    """Wall clock, as is ``until``."""
    until: float | None = None
    """When it ends by itself; None for never."""
    replace: bool = False
    """The host is to agree on a new one."""

    @property
    def good(self) -> bool:
        return self.state is not KeyState.REVOKED


@dataclass(frozen=True, slots=True)
class PutKey:
    """Write a key, over one of the same identifier if there is one."""

    record: KeyRecord


@dataclass(frozen=True, slots=True)
class DropKey:
    """Forget a key."""

    id: int


KeyChange = PutKey | DropKey


class Keyring:
    """All keys of a server. Methods that change something return the changes for the store."""

    def __init__(self, draw: Draw, records: Iterable[KeyRecord] = ()) -> None:
        self._draw = draw
        self._records: dict[int, KeyRecord] = {}
        self._of_host: dict[bytes, dict[int, None]] = {}
        self._ending: dict[int, float] = {}
        for record in records:
            self._put(record)

    def __iter__(self) -> Iterator[KeyRecord]:
        return iter(tuple(self._records.values()))

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._records

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key_id: int) -> KeyRecord | None:
        return self._records.get(key_id)

    def of_host(self, host_id: bytes) -> tuple[KeyRecord, ...]:
        """Every key of a host, revoked ones too, the oldest first."""
        return tuple(self._records[each] for each in self._of_host.get(host_id, ()))

    def find(self, text: str) -> tuple[KeyRecord, ...]:
        """The keys of a name, or the one of an identifier in hexadecimal. Raises UsageError if there is none."""
        found = [each for each in self if text in (each.name, each.key.label)]
        if not found:
            raise UsageError(f'there is no key called "{text}"; see: dnatctl key list')
        return tuple(found)

    @property
    def next_deadline(self) -> float | None:
        """When `expire` will have something to do."""
        return min(self._ending.values(), default=None)

    # What changes

    def make(self, name: str, host_id: bytes | None, now: float) -> tuple[KeyRecord, tuple[KeyChange, ...]]:
        """A key that an operator carries to its host; lifts the refusal of a host whose keys were revoked."""
        changes: list[KeyChange] = []
        if any(each.name == name and each.good for each in self):
            raise UsageError(f'there is a key called "{name}" already; to replace it: dnatctl key rotate {name}')
        if host_id is not None:
            if any(each.good for each in self.of_host(host_id)):
                raise UsageError("this host has a key already; to replace it: dnatctl key rotate")
            changes += [self._drop(each.key.id) for each in self.of_host(host_id)]
        secret = b"".join(self._draw().to_bytes(8) for _ in range(SECRET_LENGTH // 8))
        record = KeyRecord(Key(self.new_id(), secret), name, host_id, KeyState.NEW, False, now)
        return record, (*changes, self._put(record))

    def agree(self, secret: bytes, key_id: int, name: str, host_id: bytes, now: float) -> tuple[KeyChange, ...]:
        """Take in a key agreed on with a host.

        The last ones that were never used stay beside it until one is used: this may answer a late repeat of a question
        whose first answer the host has.
        """
        unused = self._unused(host_id)[: -(UNUSED_KEPT - 1)]
        record = KeyRecord(Key(key_id, secret), name, host_id, KeyState.NEW, True, now, now + UNUSED)
        return (*(self._drop(each.key.id) for each in unused), self._put(record))

    def _unused(self, host_id: bytes) -> list[KeyRecord]:
        """Those that a host has not used yet, the oldest first."""
        return sorted(
            (each for each in self.of_host(host_id) if each.state is KeyState.NEW), key=lambda one: one.created_at
        )

    def used(self, key_id: int, host_id: bytes, now: float) -> tuple[KeyChange, ...]:
        """An authentic message of this host came with the key: binds it, and retires those before it."""
        record = self._records[key_id]
        if record.state is not KeyState.NEW:
            return ()
        changes: list[KeyChange] = [
            self._put(replace(each, state=KeyState.RETIRING, until=now + OVERLAP, replace=False))
            for each in self.of_host(host_id)
            if each.state is KeyState.ACTIVE
        ]
        changes += [self._drop(each.key.id) for each in self._unused(host_id) if each is not record]
        changes.append(self._put(replace(record, state=KeyState.ACTIVE, host_id=host_id, until=None)))
        return tuple(changes)

    def rotate(self, key_ids: Iterable[int]) -> tuple[KeyChange, ...]:
        """Have the hosts of active keys agree on new ones."""
        active = [each for key_id in key_ids if (each := self._records[key_id]).state is KeyState.ACTIVE]
        return tuple(self._put(replace(each, replace=True)) for each in active)

    def revoke(self, key_ids: Iterable[int]) -> tuple[KeyChange, ...]:
        """End keys at once. One that never met its host is forgotten; the others keep their hosts out."""
        changes: list[KeyChange] = []
        for key_id in key_ids:
            record = self._records[key_id]
            if record.host_id is None:
                changes.append(self._drop(key_id))
            else:
                changes.append(self._put(replace(record, state=KeyState.REVOKED, until=None, replace=False)))
        return tuple(changes)

    def forget(self, key_ids: Iterable[int]) -> tuple[KeyChange, ...]:
        """Remove every trace: a host without a key is again one that never had any."""
        return tuple(self._drop(key_id) for key_id in key_ids)

    def expire(self, now: float) -> tuple[KeyChange, ...]:
        """Forget keys whose time has come."""
        return tuple(self._drop(key_id) for key_id, until in tuple(self._ending.items()) if until <= now)

    def follow(self, changes: Iterable[KeyChange]) -> None:
        """Take in what another server has made durable."""
        for change in changes:
            if isinstance(change, PutKey):
                self._put(change.record)
            elif change.id in self._records:
                self._drop(change.id)

    # Bookkeeping

    def new_id(self) -> int:
        while (key_id := 1 + self._draw() % 0xFFFFFFFF) in self._records:
            pass
        return key_id

    def _put(self, record: KeyRecord) -> PutKey:
        key_id = record.key.id
        self._records[key_id] = record
        self._ending.pop(key_id, None)
        if record.until is not None:
            self._ending[key_id] = record.until
        if record.host_id is not None:
            self._of_host.setdefault(record.host_id, {})[key_id] = None
        return PutKey(record)

    def _drop(self, key_id: int) -> DropKey:
        record = self._records.pop(key_id)
        self._ending.pop(key_id, None)
        if record.host_id is not None:
            of_host = self._of_host[record.host_id]
            del of_host[key_id]
            if not of_host:
                del self._of_host[record.host_id]
        return DropKey(key_id)
