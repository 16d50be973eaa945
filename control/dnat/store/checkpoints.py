"""Carries the write-ahead log of a SQLite file into the file itself while commits go on: none of them waits for it."""

from __future__ import annotations

import contextlib
import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

CHANGES = 2000
"""Changes after which the log is carried over: a few megabytes."""
LONGEST_LOG = 16384
"""Pages of the log, 64 MB, at which a commit does it after all."""


class Checkpoints:
    """A thread and a connection of their own. A failure is no loss: the log stays, and is carried over later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lease-store-checkpoint")
        self._running: Future[None] | None = None
        self._changes = 0

    def wrote(self, changes: int) -> None:
        """So many changes were committed."""
        self._changes += changes
        if self._changes >= CHANGES and (self._running is None or self._running.done()):
            self._changes = 0
            self._running = self._thread.submit(self._carry_over)

    def close(self) -> None:
        """Wait for the one under way."""
        self._thread.shutdown()

    def _carry_over(self) -> None:
        there = f"{self._path.absolute().as_uri()}?mode=rw"
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(there, uri=True)) as database:
            database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
