"""What a store would hold, in memory: for tests whose servers crash and start again."""

from __future__ import annotations

from collections.abc import Iterable

from dnat.leases.pool import Pool
from dnat.leases.records import Change, DropHold, DropLease, HoldKey, HoldRecord, LeaseRecord, PutHold, PutLease
from dnat.leases.table import LeaseTable


class DurableLeases:
    """Leases and holds that changes were applied to, and the table that a fresh server makes of them."""

    def __init__(self) -> None:
        self.leases: dict[int, LeaseRecord] = {}
        self.holds: dict[HoldKey, HoldRecord] = {}

    def write(self, changes: Iterable[Change]) -> None:
        for change in changes:
            match change:
                case PutLease(record):
                    self.leases[record.id] = record
                case DropLease(lease_id):
                    del self.leases[lease_id]
                case PutHold(hold):
                    self.holds[hold.key] = hold
                case DropHold(address, ports, protocol):
                    del self.holds[address, ports, protocol]

    def table(self, pool: Pool, grace: float = 0.0) -> LeaseTable:
        table = LeaseTable(pool, grace=grace)
        table.load(self.leases.values(), self.holds.values())
        return table
