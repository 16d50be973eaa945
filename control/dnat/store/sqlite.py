"""Leases in a SQLite file: for one machine.

Each commit reaches the disk before it counts (WAL, ``synchronous=FULL``).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dnat.leases.records import (
    Change,
    HoldRecord,
    LeaseRecord,
    outcome,
)
from dnat.store.base import State, StoreError, Watcher, many_records
from dnat.store.checkpoints import LONGEST_LOG, Checkpoints
from dnat.store.history import RETENTION, History, Period, Tenure, enter, tenures
from dnat.store.history import SCHEMA as HISTORY_SCHEMA
from dnat.store.rows import BLOCK_COLUMNS, BLOCK_SCHEMA, block_row, put_rows, read_block
from dnat.types import PortRange, address_text, parse_address, protocol_of, purpose_of

SCHEMA_VERSION = 2
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    id BLOB PRIMARY KEY, {BLOCK_SCHEMA}, txid BLOB NOT NULL, granted_at REAL NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holds (
    address TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, protocol INTEGER NOT NULL,
    host_id BLOB NOT NULL, until REAL NOT NULL, purpose INTEGER NOT NULL, PRIMARY KEY (address, first, last, protocol)
) WITHOUT ROWID;
"""

_LEASE_COLUMNS = f"id, {BLOCK_COLUMNS}, txid, granted_at, expires_at"


class SqliteStore:
    """A `dnat.store.base.Store` in one file."""

    def __init__(self, path: Path, retention: float = RETENTION, clock: Callable[[], float] = time.time) -> None:
        """``retention``: seconds that the log keeps what has ended; ``clock``: the time of the log's entries."""
        self.path = path
        self._history = History(retention)
        self._clock = clock
        self._watchers: list[Watcher] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lease-store")
        self._checkpoints = Checkpoints(path)
        self._database: sqlite3.Connection | None = None

    async def open(self, now: float) -> State:
        """Open the file, create it when there is none. Raises StoreError, and leaves a damaged file as it is."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._open, now)

    def watch(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)

    async def transact(self, changes: Sequence[Change]) -> None:
        """Make changes durable, then tell the watchers. One at a time. Raises StoreError."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, changes)
        self._checkpoints.wrote(len(changes))
        for watcher in self._watchers:
            watcher(changes)

    async def tenures(self, period: Period) -> list[Tenure]:
        """What the log says about a period. Raises StoreError."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._tenures, period)

    async def close(self) -> None:
        self._checkpoints.close()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _open(self, now: float) -> State:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._close()
            examined = self._examine() if self.path.exists() else None
            try:
                self._database = database = _connect(self.path)
            except sqlite3.OperationalError:
                # On a full disk there is no room for the index of the log: have it in memory, which shuts out others.
                self._database = database = _connect(self.path, alone=True)
            (version,) = database.execute("PRAGMA user_version").fetchone()
            # A store that is there is not written to: it must open on a full disk, too.
            if version < SCHEMA_VERSION:
                self._bring_up_to_date(database, version, now)
            state = examined or self._read(database)
            self._history.open(state.records)
            return state
        except sqlite3.OperationalError as error:
            raise StoreError(f"the lease store {self.path} cannot be opened: {error}") from None
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            what = " ".join(str(error).split())
            raise StoreError(
                f"the lease store {self.path} is damaged ({what}). Nothing was changed. Restore it from a backup,"
                f" or move it away (mv {self.path} {self.path}.damaged): hosts then register again what they hold"
            ) from None
        except OSError as error:
            raise StoreError(f"the lease store {self.path} cannot be made: {error}") from None

    def _examine(self) -> State | None:
        """Read everything without the right to write: merely closing a file would carry its log into it.

        None where it is of another schema that can be brought up to date.
        """
        try:
            return self._examine_file(self.path)
        except sqlite3.OperationalError:
            # Even readers need room for the index of the log. Where the disk has none, memory has.
            with tempfile.TemporaryDirectory(prefix="dnat-", dir="/dev/shm") as directory:
                for path in self.path.parent.glob(f"{self.path.name}*"):
                    if path.name in (self.path.name, f"{self.path.name}-wal"):
                        shutil.copy(path, directory)
                return self._examine_file(Path(directory) / self.path.name)

    def _examine_file(self, path: Path) -> State | None:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        with contextlib.closing(database):
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == SCHEMA_VERSION:
                return self._read(database)
            if version not in (0, 1):
                raise StoreError(
                    f"the lease store {self.path} was written by another version of dnat (schema {version}, this one"
                    f" reads {SCHEMA_VERSION}): run that version, or move the file away to start afresh"
                )
        return None

    def _bring_up_to_date(self, database: sqlite3.Connection, version: int, now: float) -> None:
        """Make the tables, or those that the first schema lacks, whose leases enter the log as they stand."""
        database.execute("BEGIN IMMEDIATE")
        if version == 1:
            # Holds did not say what their ranges were used for; ephemeral is by far the most common.
            database.execute("ALTER TABLE holds ADD COLUMN purpose INTEGER NOT NULL DEFAULT 1")
        for statement in (_SCHEMA + HISTORY_SCHEMA).split(";"):
            database.execute(statement)
        database.execute("INSERT OR IGNORE INTO meta VALUES ('epoch_start', ?)", (now,))
        enter(database, self._read(database).records)
        database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        database.execute("COMMIT")

    @staticmethod
    def _read(database: sqlite3.Connection) -> State:
        with many_records():
            records = tuple(map(_record, database.execute(f"SELECT {_LEASE_COLUMNS} FROM leases")))
        holds = tuple(
            HoldRecord(
                parse_address(address),
                PortRange(first, last),
                protocol_of(protocol),
                purpose_of(purpose),
                host_id,
                until,
            )
            for address, first, last, protocol, host_id, until, purpose in database.execute(
                "SELECT address, first, last, protocol, host_id, until, purpose FROM holds"
            )
        )
        (epoch_start,) = database.execute("SELECT value FROM meta WHERE key = 'epoch_start'").fetchone()
        return State(records, holds, epoch_start)

    def _commit(self, changes: Sequence[Change]) -> None:
        database = self._database
        assert database is not None
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                _apply(database, changes)
                self._history.note(database, changes, self._clock())
                database.execute("COMMIT")
                self._history.committed()
            except BaseException:
                self._history.rolled_back()
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(f"the lease store {self.path} cannot be written: {error}") from None

    def _tenures(self, period: Period) -> list[Tenure]:
        if self._database is None:
            raise StoreError(f"the lease store {self.path} could not be opened again after a failure: the log says why")
        try:
            return tenures(self._database, period)
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise StoreError(f"the lease store {self.path} cannot be read: {error}") from None

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _connect(path: Path, *, alone: bool = False) -> sqlite3.Connection:
    """Open the file, and read a little of it. ``alone``: nobody else can read it meanwhile."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        if alone:
            database.execute("PRAGMA locking_mode=EXCLUSIVE")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        if not alone:
            database.execute(f"PRAGMA wal_autocheckpoint={LONGEST_LOG}")
        database.execute("PRAGMA user_version").fetchone()
        return database
    except BaseException:
        database.close()
        raise


def _record(row: tuple[Any, ...]) -> LeaseRecord:
    """One row of `_LEASE_COLUMNS`. Raises ValueError."""
    transaction, granted_at, expires_at = row[8:]
    return LeaseRecord(*read_block(*row[:8]), int.from_bytes(transaction), granted_at, expires_at)


def _apply(database: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Make the changes. What counts is how they leave each lease and hold: that takes few statements for many rows."""
    leases, holds = outcome(changes)
    put_rows(database, "INSERT OR REPLACE INTO leases", [_lease_row(each) for each in leases.values() if each])
    put_rows(database, "INSERT OR REPLACE INTO holds", [_hold_row(each) for each in holds.values() if each])
    database.executemany(
        "DELETE FROM leases WHERE id = ?", [(id_.to_bytes(8),) for id_, record in leases.items() if record is None]
    )
    database.executemany(
        "DELETE FROM holds WHERE address = ? AND first = ? AND last = ? AND protocol = ?",
        [
            (str(address), ports.first, ports.last, int(protocol))
            for (address, ports, protocol), hold in holds.items()
            if hold is None
        ],
    )


def _lease_row(record: LeaseRecord) -> tuple[object, ...]:
    return (*block_row(record), record.transaction.to_bytes(8), record.granted_at, record.expires_at)


def _hold_row(hold: HoldRecord) -> tuple[object, ...]:
    return (
        address_text(hold.address),
        hold.ports.first,
        hold.ports.last,
        int(hold.protocol),
        hold.host_id,
        hold.until,
        int(hold.purpose),
    )
