"""Whatever is asked, in whatever order, with crashes and restarts between: no port has two holders."""

from __future__ import annotations

import itertools
import random
from ipaddress import IPv4Address

from durable import DurableLeases
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from dnat.leases.errors import LeaseRefused
from dnat.leases.pool import Pool, classes
from dnat.leases.records import Change, LeaseRecord, Want
from dnat.leases.table import LeaseTable
from dnat.types import Parity, PortRange, Protocol, Purpose

ADDRESSES = (IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2"))
POOL = Pool(ADDRESSES, (PortRange(2000, 2007), PortRange(2010, 2020)), (PortRange(5060, 5061),))
HOSTS = [bytes([n]) * 16 for n in range(4)]
OPEN = range(2000, 2021)

hosts = st.sampled_from(HOSTS)
wants = st.builds(
    Want,
    count=st.integers(1, 8),
    protocol=st.sampled_from(Protocol),
    purpose=st.sampled_from(Purpose),
    parity=st.sampled_from(Parity),
    exact=st.booleans(),
    lifetime=st.integers(60, 300),
    address=st.none() | st.sampled_from(ADDRESSES),
)
specific_wants = st.builds(
    Want,
    count=st.integers(1, 3),
    protocol=st.sampled_from(Protocol),
    purpose=st.sampled_from(Purpose),
    first=st.integers(1998, 2020) | st.sampled_from([5060, 5061]),
    lifetime=st.integers(60, 300),
    address=st.none() | st.sampled_from(ADDRESSES),
)


class Allocator(RuleBasedStateMachine):
    """The table beside a model: what is durable, and which host may believe in which ports until when."""

    leases = Bundle("leases")

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        self.choose = random.Random(seed).randrange
        self.now = 0.0
        self.table = LeaseTable(POOL)
        self.durable = DurableLeases()
        self.unwritten: list[Change] = []
        self.told: dict[int, LeaseRecord] = {}
        self.freed: dict[tuple[IPv4Address, Protocol, int], tuple[bytes, float]] = {}
        """Last holder of each port that was freed, and when; told to somebody, so durable."""

    @rule(target=leases, host=hosts, want=wants | specific_wants, answered=st.booleans())
    def request(self, host: bytes, want: Want, answered: bool) -> object:
        lan = IPv4Address("10.66.0.0") + HOSTS.index(host)
        try:
            transaction = self.choose(2**64)
            record, changes = self.table.grant(host, lan, want, transaction, self.now, choose=self.choose)
        except LeaseRefused:
            return multiple()
        assert len(record.ports) == want.count or (len(record.ports) < want.count and not want.all_or_nothing)
        assert want.first in (None, record.ports.first)
        assert want.address in (None, record.address)
        assert want.parity is Parity.ANY or (record.ports.first % 2 == 0) is (want.parity is Parity.EVEN)
        for port in range(record.ports.first, record.ports.last + 1):
            assert port in OPEN if want.first is None else port in OPEN or port in (5060, 5061)
            assert port not in (2008, 2009)
            for protocol in classes(record.protocol):
                former, freed_at = self.freed.get((record.address, protocol, port), (host, 0.0))
                assert former == host or freed_at + 120.0 <= self.now, "given away during its hold"
        self.unwritten += changes
        if answered:
            self.commit()
            self.told[record.id] = record
        return record.id

    @rule(lease=leases, host=hosts, lifetime=st.integers(60, 300))
    def renew(self, lease: int, host: bytes, lifetime: int) -> None:
        before = self.table.get(lease)
        record, changes = self.table.renew(lease, host, lifetime, self.now)
        if record is None:
            assert before is None or before.host_id != host or before.expires_at <= self.now
            assert changes == ()
        else:
            assert record.host_id == host
            assert record.expires_at == self.now + lifetime
            self.unwritten += changes
            self.commit()
            self.told[lease] = record

    @rule(lease=leases, host=hosts)
    def release(self, lease: int, host: bytes) -> None:
        before = self.table.get(lease)
        self.unwritten += self.table.release(lease, host, self.now)
        if before is not None and before.host_id == host:
            self.commit()
            self.free(before)

    @rule(lease=consumes(leases))
    def revoke(self, lease: int) -> None:
        record, changes = self.table.revoke(lease, self.now)
        self.unwritten += changes
        self.commit()
        if record is not None:
            self.free(record)

    @rule(seconds=st.integers(1, 200))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        before = {record.id: record for record in self.table}
        self.unwritten += self.table.expire(self.now)
        self.commit()
        for lease_id, record in before.items():
            if self.table.get(lease_id) is None:
                assert record.expires_at <= self.now
                self.free(record)
        assert all(record.expires_at > self.now for record in self.table)

    @rule()
    def restart(self) -> None:
        self.commit()
        self.crash()

    @precondition(lambda self: self.unwritten)
    @rule()
    def crash(self) -> None:
        """What was not written is gone; nobody was told of it."""
        self.unwritten = []
        self.table = self.durable.table(POOL)

    def commit(self) -> None:
        self.durable.write(self.unwritten)
        self.unwritten = []

    def free(self, record: LeaseRecord) -> None:
        self.told.pop(record.id, None)
        for port in range(record.ports.first, record.ports.last + 1):
            for protocol in classes(record.protocol):
                self.freed[record.address, protocol, port] = (record.host_id, self.now)

    @invariant()
    def no_port_has_two_holders(self) -> None:
        everything = [*self.table, *self.table.holds]
        for one, other in itertools.combinations(everything, 2):
            assert (
                one.address != other.address
                or not one.ports.overlaps(other.ports)
                or not one.protocol.overlaps(other.protocol)
            )

    @invariant()
    def what_hosts_were_told_stands(self) -> None:
        for lease_id, record in self.told.items():
            standing = self.table.get(lease_id)
            assert standing is not None
            assert (standing.ports, standing.host_id) == (record.ports, record.host_id)
            assert standing.expires_at >= record.expires_at

    @invariant()
    def the_bitmaps_are_what_the_records_say(self) -> None:
        fresh = LeaseTable(POOL)
        fresh.load(self.table, self.table.holds)
        for host in HOSTS:
            for address, protocol in itertools.product(ADDRESSES, Protocol):
                assert self.table._free(host, address, protocol) == fresh._free(host, address, protocol)
        assert fresh.next_deadline() == self.table.next_deadline()

    @invariant()
    def the_store_can_follow(self) -> None:
        if not self.unwritten:
            assert {record.id: record for record in self.table} == self.durable.leases
            assert {hold.key: hold for hold in self.table.holds} == self.durable.holds


TestAllocator = Allocator.TestCase
TestAllocator.settings = settings(max_examples=60, stateful_step_count=40)
