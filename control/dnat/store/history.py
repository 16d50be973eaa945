"""Who held which block of ports when (RFC 6302; RFC 6888, section 4): a record per lease and LAN address of its holder.

Rows are written in the transaction that grants, moves or ends a lease, so the log never says more or less than what was
promised. A renewal writes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from dnat.leases.records import Change, DropLease, LeaseRecord, PutLease
from dnat.store.rows import BLOCK_COLUMNS, BLOCK_SCHEMA, block_row, put_rows, read_block
from dnat.types import PortRange, Protocol, Purpose

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS history (lease BLOB NOT NULL, {BLOCK_SCHEMA}, since REAL NOT NULL, until REAL);
CREATE INDEX IF NOT EXISTS history_by_lease ON history (lease, until);
CREATE INDEX IF NOT EXISTS history_by_address ON history (address, since);
"""
_COLUMNS = f"lease, {BLOCK_COLUMNS}, since, until"
RETENTION = 180 * 86400.0
"""Seconds; how long records must or may be kept is a matter of law, see ``server.retention_days``."""
PRUNE_SECONDS = 3600.0
"""How often records beyond the retention are removed."""


@dataclass(frozen=True, slots=True)
class Tenure:
    """One host's time with one block of ports."""

    lease: int
    address: IPv4Address
    """External address."""
    ports: PortRange
    protocol: Protocol
    purpose: Purpose
    host_id: bytes
    host: IPv4Address
    """The holder's LAN address during that time."""
    since: float
    """Wall-clock seconds, as is ``until``."""
    until: float | None
    """None while it lasts."""


@dataclass(frozen=True, slots=True)
class Period:
    """Which tenures are asked for: those that touch the time, and whatever else is named."""

    since: float = 0.0
    until: float = float("inf")
    """A moment has both ends equal."""
    address: IPv4Address | None = None
    port: int | None = None

    def touches(self, tenure: Tenure) -> bool:
        """Whether a tenure is asked for."""
        lasts = tenure.since <= self.until and (tenure.until is None or tenure.until > self.since)
        return lasts and self.address in (None, tenure.address) and (self.port is None or self.port in tenure.ports)


class History:
    """The log's side of one lease store. Every method runs within the store's own transaction."""

    def __init__(self, retention: float) -> None:
        """``retention``: seconds that a record is kept after its end."""
        self._retention = retention
        self._holders: dict[int, IPv4Address] = {}
        self._pending: dict[int, IPv4Address | None] = {}
        self._prune_at = 0.0

    def open(self, records: Sequence[LeaseRecord]) -> None:
        """Take up the log, which says of these leases, and of no others, that they last."""
        self._pending = {}
        self._holders = {record.id: record.host for record in records}

    def note(self, database: sqlite3.Connection, changes: Sequence[Change], now: float) -> None:
        """Enter what changes mean for the log, in their order."""
        begun: dict[int, LeaseRecord] = {}
        written: list[tuple[LeaseRecord, float | None]] = []
        ended: list[int] = []

        def end(lease_id: int) -> None:
            record = begun.pop(lease_id, None)
            if record is None:
                ended.append(lease_id)
            else:
                written.append((record, now))

        for change in changes:
            match change:
                case PutLease(record):
                    holder = self._pending.get(record.id, self._holders.get(record.id))
                    if holder == record.host:
                        continue
                    if holder is not None:
                        end(record.id)
                    begun[record.id] = record
                    self._pending[record.id] = record.host
                case DropLease(lease_id):
                    end(lease_id)
                    self._pending[lease_id] = None
                case _:
                    pass
        database.executemany(
            "UPDATE history SET until = max(since, ?) WHERE lease = ? AND until IS NULL",
            [(now, lease_id.to_bytes(8)) for lease_id in ended],
        )
        written += [(record, None) for record in begun.values()]
        put_rows(database, "INSERT INTO history", [_row(record, now, until) for record, until in written])
        if now >= self._prune_at:
            self._prune(database, now)

    def committed(self) -> None:
        """What was noted is durable."""
        for lease_id, holder in self._pending.items():
            if holder is None:
                self._holders.pop(lease_id, None)
            else:
                self._holders[lease_id] = holder
        self._pending = {}

    def rolled_back(self) -> None:
        """What was noted never was."""
        self._pending = {}

    def _prune(self, database: sqlite3.Connection, now: float) -> None:
        database.execute("DELETE FROM history WHERE until IS NOT NULL AND until < ?", (now - self._retention,))
        self._prune_at = now + PRUNE_SECONDS


def enter(database: sqlite3.Connection, records: Sequence[LeaseRecord]) -> None:
    """Begin the log of a store that had none with the leases that it holds."""
    put_rows(database, "INSERT INTO history", [_row(record, record.granted_at, None) for record in records])


def tenures(database: sqlite3.Connection, period: Period) -> list[Tenure]:
    """What the log says, the oldest first."""
    conditions = ["since <= ?", "(until IS NULL OR until > ?)"]
    values: list[object] = [period.until, period.since]
    if period.address is not None:
        conditions.append("address = ?")
        values.append(str(period.address))
    if period.port is not None:
        conditions.append("first <= ? AND last >= ?")
        values += [period.port, period.port]
    query = f"SELECT {_COLUMNS} FROM history WHERE {' AND '.join(conditions)} ORDER BY since, rowid"
    return [Tenure(*read_block(*row[:8]), *row[8:]) for row in database.execute(query, values)]


def _row(record: LeaseRecord, since: float, until: float | None) -> tuple[object, ...]:
    return (*block_row(record), since, until)
