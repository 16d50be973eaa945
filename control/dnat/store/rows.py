"""Rows of SQLite: what leases and their log have in common, and many of them in few statements."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from ipaddress import IPv4Address

from dnat.leases.records import LeaseRecord
from dnat.types import PortRange, Protocol, Purpose, address_text, parse_address, protocol_of, purpose_of

BLOCK_COLUMNS = "address, first, last, protocol, purpose, host_id, host"
"""After the lease's identifier: its block of ports, and who holds it."""
BLOCK_SCHEMA = """address TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    protocol INTEGER NOT NULL, purpose INTEGER NOT NULL, host_id BLOB NOT NULL, host TEXT NOT NULL"""
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


def block_row(record: LeaseRecord) -> tuple[bytes, str, int, int, int, int, bytes, str]:
    """Identifier and BLOCK_COLUMNS of a lease."""
    ports = record.ports
    return (
        record.id.to_bytes(8),
        address_text(record.address),
        ports.first,
        ports.last,
        int(record.protocol),
        int(record.purpose),
        record.host_id,
        address_text(record.host),
    )


def read_block(
    id_: bytes, address: str, first: int, last: int, protocol: int, purpose: int, host_id: bytes, host: str
) -> tuple[int, IPv4Address, PortRange, Protocol, Purpose, bytes, IPv4Address]:
    """The first fields of a `LeaseRecord` or `Tenure`. Raises ValueError."""
    return (
        int.from_bytes(id_),
        parse_address(address),
        PortRange(first, last),
        protocol_of(protocol),
        purpose_of(purpose),
        host_id,
        parse_address(host),
    )
