"""The servers' keys in etcd: what one server agrees on, rotates or revokes, the others know at once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from dnat.pap.auth import Key
from dnat.pap.keyring import DropKey, KeyChange, KeyRecord, KeyState, PutKey
from dnat.store.base import StoreError
from dnat.store.etcd.client import Cluster, EtcdClient, delete, fetch, put, unchanged
from dnat.store.etcd.follower import Follower
from dnat.store.etcd.mirror import DELETE
from dnat.store.keys import KeyStoreState

AT_ONCE = 100
"""Keys of one transaction; etcd takes 128 operations unless told otherwise."""


class _Row(msgspec.Struct, frozen=True):
    algorithm: int
    secret: bytes
    name: str
    host_id: str | None
    state: str
    agreed: bool
    created_at: float
    until: float | None
    replace: bool


class EtcdKeyStore:
    """Keys, each changed on condition that no other server has changed it. As `dnat.store.keys.KeyStore`."""

    def __init__(self, cluster: Cluster) -> None:
        self._client = EtcdClient(cluster)
        self._path = cluster.path
        self._prefix = self._path("secret", "keys", "")
        self._follower = Follower(self._client, self._prefix, self)
        self._listener: Callable[[Sequence[KeyChange]], None] = lambda _: None
        self._revisions: dict[int, int] = {}
        """When each key was changed last."""
        self._name = secrets.token_hex(8)
        self._transactions = 0
        self._busy = False
        self._deferred: list[Any] = []
        self.revision = 0
        self.cluster = 0

    def foreign(self, listener: Callable[[Sequence[KeyChange]], None]) -> None:
        """Call ``listener`` on the event loop with what other servers changed."""
        self._listener = listener

    async def open(self) -> KeyStoreState:
        """Read the keys. Raises StoreError."""
        await self._follower.stop()
        cookie = self._path("secret", "cookie")
        await self._client.transact([unchanged(cookie, 0)], [put(cookie, secrets.token_bytes(32))])
        pair, _ = await self._client.get(cookie)
        pairs, header = await self._client.read(self._prefix)
        records = [_record(self._id(each.key), each.value) for each in pairs]
        self._revisions = {self._id(each.key): each.mod_revision for each in pairs}
        self.revision, self.cluster = header.revision, header.cluster_id
        self._follower.start()
        return KeyStoreState(tuple(sorted(records, key=lambda each: (each.created_at, each.key.id))), pair.value)

    async def transact(self, changes: Sequence[KeyChange]) -> None:
        """Make changes durable. Raises StoreError, also when another server changed one of the keys first.

        More than etcd takes at once is written in several transactions. If a later one fails, the earlier ones stand.
        """
        final = {_changed(change): change for change in changes}
        self._busy = True
        try:
            for part in _batched(final, AT_ONCE):
                await self._write({each: final[each] for each in part})
        finally:
            self._busy = False
            deferred, self._deferred = self._deferred, []
            self.heard(deferred)

    async def _write(self, final: dict[int, KeyChange]) -> None:
        self._transactions += 1
        writer, token = self._path("secret", "writer"), f"{self._name}-{self._transactions}".encode()
        while final:
            values = {
                each: _value(change.record) if isinstance(change, PutKey) else None for each, change in final.items()
            }
            compare = [unchanged(self._key(each), self._revisions.get(each, 0)) for each in final]
            writes = [
                delete(self._key(each)) if value is None else put(self._key(each), value)
                for each, value in values.items()
            ]
            looks = [fetch(writer), *(fetch(self._key(each)) for each in final)]
            answer = await self._client.transact(compare, [put(writer, token), *writes], looks)
            revision = answer.header.revision
            if not answer.succeeded:
                last, *there = [_one(each.response_range.kvs) for each in answer.responses]
                if last is None or last.value != token:
                    self._pass_over(final, values, there)
                    continue
                # It was a repeat: the first attempt had gone through, only its answer was lost.
                revision = last.mod_revision
            for each, value in values.items():
                self._note(each, None if value is None else revision)
            return

    def _pass_over(self, final: dict[int, KeyChange], values: dict[int, bytes | None], there: Sequence[Any]) -> None:
        """Another server was first: what it did as we would have, such as to end a key whose time has come, is done.

        Raises StoreError if that explains nothing.
        """
        done = {
            each: pair
            for (each, value), pair in zip(values.items(), there, strict=True)
            if value == (None if pair is None else pair.value) and self._revisions.get(each, 0) != _revision(pair)
        }
        if not done:
            raise StoreError("another server changed the same key first")
        for each, pair in done.items():
            self._note(each, _revision(pair) or None)
            del final[each]

    def _note(self, key_id: int, revision: int | None) -> None:
        """A key was changed last at a revision; None: there is none any more."""
        if revision is None:
            self._revisions.pop(key_id, None)
        else:
            self._revisions[key_id] = revision

    async def close(self) -> None:
        await self._follower.stop()
        await self._client.close()

    # What the follower says

    def reread(self, pairs: Sequence[Any], header: Any) -> None:
        self.revision, self.cluster = header.revision, header.cluster_id
        there = {self._id(each.key): each for each in pairs}
        changes: list[KeyChange] = [DropKey(each) for each in self._revisions if each not in there]
        for key_id, pair in there.items():
            if self._revisions.get(key_id, 0) < pair.mod_revision:
                changes.append(PutKey(_record(key_id, pair.value)))
        self._revisions = {key_id: pair.mod_revision for key_id, pair in there.items()}
        self._listener(changes)

    def heard(self, events: Sequence[Any]) -> None:
        if self._busy:  # our own changes may be among these
            self._deferred += events
            return
        changes: list[KeyChange] = []
        for event in events:
            key_id, revision = self._id(event.kv.key), event.kv.mod_revision
            self.revision = max(self.revision, revision)
            if event.type == DELETE:
                if key_id in self._revisions:
                    del self._revisions[key_id]
                    changes.append(DropKey(key_id))
            elif self._revisions.get(key_id, 0) < revision:
                self._revisions[key_id] = revision
                changes.append(PutKey(_record(key_id, event.kv.value)))
        if changes:
            self._listener(changes)

    def _key(self, key_id: int) -> bytes:
        return self._prefix + f"{key_id:08x}".encode()

    def _id(self, key: bytes) -> int:
        return int(key[len(self._prefix) :], 16)


def _batched(keys: Iterable[int], size: int) -> Iterator[list[int]]:
    """All of them, so many at a time."""
    left = iter(keys)
    while part := list(islice(left, size)):
        yield part


def _one(pairs: Sequence[Any]) -> Any:
    """The pair that was asked for; None if there is none."""
    return pairs[0] if pairs else None


def _revision(pair: Any) -> int:
    return 0 if pair is None else int(pair.mod_revision)


def _changed(change: KeyChange) -> int:
    return change.record.key.id if isinstance(change, PutKey) else change.id


def _value(record: KeyRecord) -> bytes:
    return msgspec.json.encode(
        _Row(
            record.key.algorithm,
            record.key.secret,
            record.name,
            record.host_id.hex() if record.host_id is not None else None,
            record.state.value,
            record.agreed,
            record.created_at,
            record.until,
            record.replace,
        )
    )


def _record(key_id: int, value: bytes) -> KeyRecord:
    """Raises StoreError."""
    try:
        row = msgspec.json.decode(value, type=_Row)
        host_id = bytes.fromhex(row.host_id) if row.host_id is not None else None
        key = Key(key_id, row.secret, row.algorithm)
        return KeyRecord(
            key, row.name, host_id, KeyState(row.state), row.agreed, row.created_at, row.until, row.replace
        )
    except ValueError as error:
        raise StoreError(f"the key {key_id:08x} in the store is unreadable: {error}") from None
