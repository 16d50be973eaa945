"""The server's keys in a SQLite file of their own, which only root reads: leases can be lost, keys should not be."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from dnat.pap.auth import Key
from dnat.pap.keyring import DropKey, KeyChange, KeyRecord, KeyState, PutKey
from dnat.store.base import StoreError

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id INTEGER PRIMARY KEY, algorithm INTEGER NOT NULL, secret BLOB NOT NULL, name TEXT NOT NULL, host_id BLOB,
    state TEXT NOT NULL, agreed INTEGER NOT NULL, created_at REAL NOT NULL, until REAL, replace INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS cookie (secret BLOB NOT NULL);
"""
_COLUMNS = "id, algorithm, secret, name, host_id, state, agreed, created_at, until, replace"


@dataclass(frozen=True, slots=True)
class KeyStoreState:
    """What a key store held when it was opened."""

    records: tuple[KeyRecord, ...]
    cookie_secret: bytes
    """What cookies are made with: kept, so that a restart of the server makes no host ask anew."""


class KeyStore(Protocol):
    """Keys, durable before `transact` returns. All coroutines run on one event loop."""

    async def open(self) -> KeyStoreState:
        """Open or create the store. Raises StoreError."""

    async def transact(self, changes: Sequence[KeyChange]) -> None:
        """Make changes durable, all or none. Raises StoreError."""

    async def close(self) -> None:
        """Finish what is under way and let go of the store."""


@runtime_checkable
class SharedKeyStore(KeyStore, Protocol):
    """Keys that other servers change, too: `transact` raises StoreError if one of the keys has changed meanwhile."""

    def foreign(self, listener: Callable[[Sequence[KeyChange]], None]) -> None:
        """Call ``listener`` on the event loop with what other servers have changed."""


class SqliteKeyStore:
    """A `KeyStore` in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="key-store")
        self._database: sqlite3.Connection | None = None

    async def open(self) -> KeyStoreState:
        """Open the file, create it when there is none. Raises StoreError, and leaves a damaged file as it is."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def transact(self, changes: Sequence[KeyChange]) -> None:
        """Make changes durable, all or none. Raises StoreError."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, changes)

    async def close(self) -> None:
        """Finish what is under way and let go of the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _open(self) -> KeyStoreState:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._close()
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            self.path.chmod(0o600)
            self._database = database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            # Without WAL there is one file whose rights matter, and keys change seldom.
            database.execute("PRAGMA synchronous=EXTRA")
            database.execute("PRAGMA secure_delete=ON")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA_VERSION):
                raise StoreError(f"the key store {self.path} was written by another version of dnat (schema {version})")
            # A store that is there is not written to: it must open on a full disk, too.
            if version == 0:
                _make(database)
            (cookie_secret,) = database.execute("SELECT secret FROM cookie").fetchone()
            records = tuple(map(_record, database.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created_at, id")))
            return KeyStoreState(records, cookie_secret)
        except sqlite3.OperationalError as error:
            raise StoreError(f"the key store {self.path} cannot be opened: {error}") from None
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise StoreError(
                f"the key store {self.path} is damaged ({error}). Nothing was changed. Restore it from a backup;"
                " without it every host that has a key needs a new one: dnatctl key forget there"
            ) from None
        except OSError as error:
            raise StoreError(f"the key store {self.path} cannot be made: {error}") from None

    def _commit(self, changes: Sequence[KeyChange]) -> None:
        database = self._database
        assert database is not None
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                for change in changes:
                    _apply(database, change)
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(f"the key store {self.path} cannot be written: {error}") from None

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _make(database: sqlite3.Connection) -> None:
    """The tables and the secret, all or nothing."""
    database.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA.split(";"):
        database.execute(statement)
    if database.execute("SELECT secret FROM cookie").fetchone() is None:
        database.execute("INSERT INTO cookie VALUES (?)", (secrets.token_bytes(32),))
    database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    database.execute("COMMIT")


def _record(
    row: tuple[int, int, bytes, str, bytes | None, str, int, float, float | None, int],
) -> KeyRecord:
    """One row of `_COLUMNS`. Raises ValueError or TypeError."""
    id_, algorithm, secret, name, host_id, state, agreed, created_at, until, replace = row
    key = Key(id_, secret, algorithm)
    return KeyRecord(key, name, host_id, KeyState(state), bool(agreed), created_at, until, bool(replace))


def _apply(database: sqlite3.Connection, change: KeyChange) -> None:
    match change:
        case PutKey(record):
            database.execute(
                "INSERT OR REPLACE INTO keys VALUES (?,?,?,?,?,?,?,?,?,?)",
                (
                    record.key.id,
                    record.key.algorithm,
                    record.key.secret,
                    record.name,
                    record.host_id,
                    record.state.value,
                    record.agreed,
                    record.created_at,
                    record.until,
                    record.replace,
                ),
            )
        case DropKey(key_id):
            database.execute("DELETE FROM keys WHERE id = ?", (key_id,))
