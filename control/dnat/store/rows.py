"""Many rows in few statements of SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache

text_of = lru_cache(8192)(str)
"""Of an address."""
_AT_ONCE = (128, 32, 8, 1)
"""Rows of one statement. Few sizes, so that SQLite's compiled statements are used again."""


def put_rows(database: sqlite3.Connection, insert: str, rows: Sequence[tuple[object, ...]]) -> None:
    """``insert``, as "INSERT INTO table", of rows of one width.

    Python gives its lock away with every statement, and gets it back late where another thread is busy: a row in a
    statement of its own can take milliseconds.
    """
    position = 0
    while left := len(rows) - position:
        size = next(size for size in _AT_ONCE if size <= left)
        batch = rows[position : position + size]
        values = f"({','.join('?' * len(batch[0]))})"
        database.execute(f"{insert} VALUES {','.join([values] * size)}", [value for row in batch for value in row])
        position += size
