"""The lease table: grants, renews and takes back ranges; at most one host per (address, protocol, port).

Every method that changes something does so in memory and returns the changes for the store. When a store
cannot write them, the table is thrown away and loaded again from what the store has.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TypeVar

from dnat.leases import bitmap
from dnat.leases.errors import LeaseConflict, LeaseRefused, Refusal
from dnat.leases.pool import AddressSpace, Choose, Pool, classes, longest, pick, pick_blocks
from dnat.leases.records import (
    Change,
    DropHold,
    DropLease,
    HoldKey,
    HoldRecord,
    LeaseRecord,
    PutHold,
    PutLease,
    Want,
    fits,
)
from dnat.types import PortRange, Protocol, Purpose

HOLD = 120.0
"""Seconds that a freed range waits before another host gets it (RFC 6888, REQ-8)."""
REMEMBERED = 65536
"""Former ranges remembered beyond their hold: a host that comes back finds its old ports if they are free."""

_ID_RANDOM = 21
"""Random bits of a lease's identifier; those above are the milliseconds of its grant."""
_ID_TIMES = 1 << 63 - _ID_RANDOM

FormerKey = tuple[bytes, Protocol, Purpose, int]
_Key = TypeVar("_Key")
_Host = TypeVar("_Host", bytes, IPv4Address)


class LeaseTable:
    """Leases and holds of one pool. Times are those of the records: wall clock, seconds."""

    def __init__(self, pool: Pool, hold: float = HOLD, grace: float = 0.0) -> None:
        """``grace``: seconds after its end for which a lease can still be renewed, and is nobody else's."""
        self.pool = pool
        self._grace = grace
        self.hold = hold
        self.drained: frozenset[IPv4Address] = frozenset()
        """External addresses of which nothing is granted any more."""
        self._pooled = frozenset(pool.addresses)
        self._by_count = pool.by_count
        self._by_number = pool.by_number
        self._spaces = {address: AddressSpace(self._by_count) for address in pool.addresses}
        self._leases: dict[int, LeaseRecord] = {}
        self._holds: dict[HoldKey, HoldRecord] = {}
        self._leases_of: dict[bytes, dict[int, None]] = {}
        self._leases_at: dict[IPv4Address, dict[int, None]] = {}
        self._holds_of: dict[bytes, dict[HoldKey, None]] = {}
        self._transactions: dict[tuple[bytes, int], int] = {}
        self._former: OrderedDict[FormerKey, tuple[IPv4Address, PortRange]] = OrderedDict()
        self._ends: list[tuple[float, int, int | HoldKey]] = []
        self._serial = 0

    # What is known

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[LeaseRecord]:
        return iter(self._leases.values())

    @property
    def holds(self) -> tuple[HoldRecord, ...]:
        return tuple(self._holds.values())

    def get(self, lease_id: int) -> LeaseRecord | None:
        return self._leases.get(lease_id)

    def of_host(self, host_id: bytes) -> tuple[LeaseRecord, ...]:
        return tuple(self._leases[each] for each in self._leases_of.get(host_id, ()))

    def at(self, host: IPv4Address) -> tuple[LeaseRecord, ...]:
        """The leases whose holder was last heard from at a LAN address."""
        return tuple(self._leases[each] for each in self._leases_at.get(host, ()))

    def of_transaction(self, host_id: bytes, transaction: int) -> LeaseRecord | None:
        """The standing lease that a WANT with this transaction was granted."""
        lease_id = self._transactions.get((host_id, transaction))
        return None if lease_id is None else self._leases[lease_id]

    def strays(self) -> tuple[LeaseRecord, ...]:
        """Leases on addresses or ports which the pool no longer has; they end by expiry or `revoke`."""
        return tuple(
            record
            for record in self
            if record.address not in self.pool.addresses or bitmap.bits_of(record.ports) & ~self._by_number
        )

    def next_deadline(self) -> float | None:
        """When `expire` will have something to do."""
        while self._ends and not self._stands(self._ends[0]):
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else None

    # What changes

    def load(self, records: Iterable[LeaseRecord], holds: Iterable[HoldRecord]) -> None:
        """Fill an empty table with what a store has. Raises LeaseConflict if that contradicts itself."""
        for record in records:
            space = self._space(record.address)
            if record.id in self._leases or space.is_leased(record.ports, record.protocol):
                raise LeaseConflict(f"lease {record.id:x} claims {record.address} ports {record.ports} twice")
            self._add_lease(record)
        for hold in holds:
            space = self._space(hold.address)
            if space.is_leased(hold.ports, hold.protocol) or space.is_held(hold.ports, hold.protocol):
                raise LeaseConflict(f"hold on {hold.address} ports {hold.ports} meets another record")
            self._add_hold(hold)

    def grant(
        self, host_id: bytes, host: IPv4Address, want: Want, transaction: int, now: float, *, choose: Choose
    ) -> tuple[LeaseRecord, tuple[Change, ...]]:
        """A lease for ``want.lifetime`` seconds, of fewer ports if that is allowed. Raises LeaseRefused."""
        address, ports = self._place(host_id, want, now, choose)
        changes = self._end_own_holds(host_id, address, ports, want.protocol)
        while (lease_id := _new_id(now, choose)) in self._leases:
            pass
        record = LeaseRecord(
            id=lease_id,
            address=address,
            ports=ports,
            protocol=want.protocol,
            purpose=want.purpose,
            host_id=host_id,
            host=host,
            transaction=transaction,
            granted_at=now,
            expires_at=now + want.lifetime,
        )
        self._add_lease(record)
        return record, (*changes, PutLease(record))

    def renew(
        self, lease_id: int, host_id: bytes, lifetime: float, now: float
    ) -> tuple[LeaseRecord | None, tuple[Change, ...]]:
        """The lease with its new end; None if it has ended or is not this host's."""
        record = self._leases.get(lease_id)
        if record is None or record.host_id != host_id or record.expires_at + self._grace <= now:
            return None, ()
        record = replace(record, expires_at=now + lifetime)
        return record, self._replace(record)

    def move(self, host_id: bytes, host: IPv4Address) -> tuple[Change, ...]:
        """The host speaks from another LAN address now: routers have to send its packets there."""
        changes: list[Change] = []
        for record in self.of_host(host_id):
            if record.host != host:
                changes += self._replace(replace(record, host=host))
        return tuple(changes)

    def release(self, lease_id: int, host_id: bytes, now: float) -> tuple[Change, ...]:
        """The holder gives the lease back; nothing changes if it is not this host's."""
        record = self._leases.get(lease_id)
        return self._end(record, now) if record is not None and record.host_id == host_id else ()

    def revoke(self, lease_id: int, now: float) -> tuple[LeaseRecord | None, tuple[Change, ...]]:
        """The server takes the lease back, whoever holds it; returns what it was."""
        record = self._leases.get(lease_id)
        return record, () if record is None else self._end(record, now)

    def expire(self, now: float) -> tuple[Change, ...]:
        """End what is due. A hold starts now, not when the lease ran out: until now packets went there."""
        changes: list[Change] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            key = heapq.heappop(self._ends)[2]
            if isinstance(key, int):
                changes += self._end(self._leases[key], now)
            else:
                changes.append(self._remove_hold(key))
        return tuple(changes)

    def correct(self, leases: Mapping[int, LeaseRecord | None], holds: Mapping[HoldKey, HoldRecord | None]) -> None:
        """Make these leases and holds what a store has (None: not there), whatever was decided about them meanwhile."""
        for lease_id, truth in leases.items():
            if (record := self._leases.get(lease_id)) is not None:
                self._remove_lease(record, remember=truth is None)
        for key in holds:
            if key in self._holds:
                self._remove_hold(key)
        for record in filter(None, leases.values()):
            self._add_lease(record)
        for hold in filter(None, holds.values()):
            self._add_hold(hold)

    # Where a range is put

    def _place(self, host_id: bytes, want: Want, now: float, choose: Choose) -> tuple[IPv4Address, PortRange]:
        addresses = self._addresses_for(host_id, want)
        if want.ports is not None:
            return self._place_by_number(host_id, want, want.ports, addresses, now), want.ports
        for address in addresses:
            ports = self._place_by_count(host_id, want, address, choose)
            if ports is not None:
                return address, ports
        if not want.exact:
            free = {address: self._free_by_count(host_id, address, want.protocol) for address in addresses}
            lengths = {each: longest(free[each], want.count, want.parity) for each in addresses}
            address = max(lengths, key=lambda each: lengths[each])
            ports = pick(free[address], lengths[address], want.parity, choose) if lengths[address] else None
            if ports is not None:
                return address, ports
        raise LeaseRefused(Refusal.EXHAUSTED)

    def _addresses_for(self, host_id: bytes, want: Want) -> list[IPv4Address]:
        """A host stays on one address (RFC 4787, REQ-2); a new one starts where the most ports are free."""
        if want.address is not None:
            if want.address not in self.pool.addresses or want.address in self.drained:
                raise LeaseRefused(Refusal.OUTSIDE_POOL)
            return [want.address]
        for record in self.of_host(host_id):
            if record.address in self._pooled and record.address not in self.drained:
                return [record.address]
        served = [*self.pool.addresses]
        if self.drained:
            served = [address for address in served if address not in self.drained]
        if not served:
            raise LeaseRefused(Refusal.EXHAUSTED)
        if len(served) == 1:
            return served
        former = [key[0] for key in self._holds_of.get(host_id, ())]
        if (remembered := self._former.get(_former_key(host_id, want))) is not None:
            former.append(remembered[0])

        def rank(address: IPv4Address) -> tuple[bool, int]:
            return address not in former, -self._spaces[address].room(want.protocol)

        return sorted(served, key=rank)

    def _free(self, host_id: bytes, address: IPv4Address, protocol: Protocol) -> int:
        """Ports that this host could be granted: not leased, and not held for another host."""
        space = self._space(address)
        occupied = space.occupied(protocol)
        own = [self._holds[key] for key in self._holds_of.get(host_id, ()) if key[0] == address]
        if any(each.protocol.overlaps(protocol) for each in own):
            occupied = 0
            for each in classes(protocol):
                mine = bitmap.union(hold.ports for hold in own if each in classes(hold.protocol))
                occupied |= space.leased[each].bits | (space.held[each].bits & ~mine)
        return self._by_number & ~occupied

    def _free_by_count(self, host_id: bytes, address: IPv4Address, protocol: Protocol) -> int:
        """The same, of those that are granted by number of ports."""
        if self._has_holds(host_id, address):
            return self._free(host_id, address, protocol) & self._by_count
        return self._space(address).free(protocol)

    def _has_holds(self, host_id: bytes, address: IPv4Address) -> bool:
        return any(key[0] == address for key in self._holds_of.get(host_id, ()))

    def _place_by_count(self, host_id: bytes, want: Want, address: IPv4Address, choose: Choose) -> PortRange | None:
        old = self._old_places(host_id, want, address)
        if not old and not self._has_holds(host_id, address):
            # Whole blocks are known without a look at each port.
            ports = pick_blocks(self._space(address).free_blocks(want.protocol), want.count, want.parity, choose)
            if ports is not None:
                return ports
        free = self._free_by_count(host_id, address, want.protocol)
        for ports in old:
            if fits(want.parity, ports.first) and not bitmap.bits_of(ports) & ~free:
                return ports
        return pick(free, want.count, want.parity, choose)

    def _place_by_number(
        self, host_id: bytes, want: Want, ports: PortRange, addresses: list[IPv4Address], now: float
    ) -> IPv4Address:
        bits = bitmap.bits_of(ports)
        if bits & ~self._by_number:
            raise LeaseRefused(Refusal.OUTSIDE_POOL)
        ends: list[float] = []
        for address in addresses:
            if not bits & ~self._free(host_id, address, want.protocol):
                return address
            if not self._spaces[address].is_leased(ports, want.protocol):
                ends.append(max(hold.until for hold in self._holds_on(address, ports, want.protocol)))
        if ends:
            raise LeaseRefused(Refusal.HELD, retry_after=max(1, math.ceil(min(ends) - now)))
        raise LeaseRefused(Refusal.TAKEN)

    def _old_places(self, host_id: bytes, want: Want, address: IPv4Address) -> list[PortRange]:
        """What the host had before for the same use, and ranges of the same size that are on hold for it."""
        places = []
        remembered = self._former.get(_former_key(host_id, want))
        if remembered is not None and remembered[0] == address:
            places.append(remembered[1])
        held = [
            self._holds[key]
            for key in self._holds_of.get(host_id, ())
            if key[0] == address and key[2] is want.protocol and len(key[1]) == want.count
        ]
        return places + [each.ports for each in sorted(held, key=lambda each: each.purpose is not want.purpose)]

    # Bookkeeping

    def _space(self, address: IPv4Address) -> AddressSpace:
        space = self._spaces.get(address)
        if space is None:
            space = self._spaces[address] = AddressSpace(self._by_count)
        return space

    def _holds_on(self, address: IPv4Address, ports: PortRange, protocol: Protocol) -> list[HoldRecord]:
        return [
            hold
            for hold in self._holds.values()
            if hold.address == address and hold.ports.overlaps(ports) and hold.protocol.overlaps(protocol)
        ]

    def _stands(self, end: tuple[float, int, int | HoldKey]) -> bool:
        when, _, key = end
        if isinstance(key, int):
            record = self._leases.get(key)
            return record is not None and record.expires_at + self._grace == when
        hold = self._holds.get(key)
        return hold is not None and hold.until == when

    def _schedule(self, when: float, key: int | HoldKey) -> None:
        self._serial += 1
        heapq.heappush(self._ends, (when, self._serial, key))

    def _add_lease(self, record: LeaseRecord) -> None:
        space = self._space(record.address)
        space.occupy(space.leased, record.ports, record.protocol)
        self._leases[record.id] = record
        self._leases_of.setdefault(record.host_id, {})[record.id] = None
        self._leases_at.setdefault(record.host, {})[record.id] = None
        self._transactions[record.host_id, record.transaction] = record.id
        self._schedule(record.expires_at + self._grace, record.id)

    def _replace(self, record: LeaseRecord) -> tuple[Change, ...]:
        former = self._leases[record.id].host
        if former != record.host:
            _forget(self._leases_at, former, record.id)
            self._leases_at.setdefault(record.host, {})[record.id] = None
        self._leases[record.id] = record
        self._schedule(record.expires_at + self._grace, record.id)
        return (PutLease(record),)

    def _end(self, record: LeaseRecord, now: float) -> tuple[Change, ...]:
        self._remove_lease(record, remember=True)
        hold = HoldRecord(
            record.address, record.ports, record.protocol, record.purpose, record.host_id, now + self.hold
        )
        self._add_hold(hold)
        return DropLease(record.id), PutHold(hold)

    def _remove_lease(self, record: LeaseRecord, *, remember: bool) -> None:
        """``remember``: as what its host had before."""
        space = self._space(record.address)
        space.vacate(space.leased, record.ports, record.protocol)
        del self._leases[record.id]
        _forget(self._leases_of, record.host_id, record.id)
        _forget(self._leases_at, record.host, record.id)
        if self._transactions.get((record.host_id, record.transaction)) == record.id:
            del self._transactions[record.host_id, record.transaction]
        if not remember:
            return
        former: FormerKey = (record.host_id, record.protocol, record.purpose, len(record.ports))
        self._former[former] = (record.address, record.ports)
        self._former.move_to_end(former)
        if len(self._former) > REMEMBERED:
            self._former.popitem(last=False)

    def _add_hold(self, hold: HoldRecord) -> None:
        space = self._space(hold.address)
        space.occupy(space.held, hold.ports, hold.protocol)
        self._holds[hold.key] = hold
        self._holds_of.setdefault(hold.host_id, {})[hold.key] = None
        self._schedule(hold.until, hold.key)

    def _remove_hold(self, key: HoldKey) -> DropHold:
        hold = self._holds.pop(key)
        space = self._space(hold.address)
        space.vacate(space.held, hold.ports, hold.protocol)
        _forget(self._holds_of, hold.host_id, key)
        return DropHold(*key)

    def _end_own_holds(
        self, host_id: bytes, address: IPv4Address, ports: PortRange, protocol: Protocol
    ) -> tuple[Change, ...]:
        """Lift the host's holds off a range that it gets again; what they cover beyond it stays on hold."""
        changes: list[Change] = []
        for key in tuple(self._holds_of.get(host_id, ())):
            hold = self._holds[key]
            if address != hold.address or not (ports.overlaps(hold.ports) and protocol.overlaps(hold.protocol)):
                continue
            changes.append(self._remove_hold(key))
            granted = bitmap.bits_of(ports)
            rest = [(beyond, hold.protocol) for beyond in bitmap.ranges(bitmap.bits_of(hold.ports) & ~granted)]
            overlap = PortRange(max(ports.first, hold.ports.first), min(ports.last, hold.ports.last))
            rest += [(overlap, other) for other in classes(hold.protocol) if other not in classes(protocol)]
            for left, other in rest:
                remaining = replace(hold, ports=left, protocol=other)
                self._add_hold(remaining)
                changes.append(PutHold(remaining))
        return tuple(changes)


def _new_id(now: float, choose: Choose) -> int:
    """Identifiers grow with time: a store keeps leases granted together side by side, and writes few places anew."""
    return (int(now * 1000) % _ID_TIMES << _ID_RANDOM | choose(1 << _ID_RANDOM)) or 1


def _former_key(host_id: bytes, want: Want) -> FormerKey:
    return (host_id, want.protocol, want.purpose, want.count)


def _forget(index: dict[_Host, dict[_Key, None]], host: _Host, key: _Key) -> None:
    """Remove a key from a host's set, and the set when it was the last: hosts come and go."""
    of_host = index[host]
    del of_host[key]
    if not of_host:
        del index[host]
