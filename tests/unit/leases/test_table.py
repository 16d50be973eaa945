"""Where ranges are put, who gets what back, and what happens at the edges."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from dnat.leases.errors import LeaseConflict, LeaseRefused, Refusal
from dnat.leases.pool import Pool
from dnat.leases.records import DropHold, DropLease, HoldRecord, LeaseRecord, PutHold, PutLease, Want
from dnat.leases.table import LeaseTable
from dnat.types import Parity, PortRange, Protocol, Purpose

EXTERNAL = IPv4Address("198.51.100.1")
SECOND = IPv4Address("198.51.100.2")
POOL = Pool((EXTERNAL,), (PortRange(1024, 1535),), (PortRange(5060, 5061),))
A, B = bytes([1] * 16), bytes([2] * 16)
LAN = IPv4Address("10.66.0.11")
ANY_BLOCK = Want(64, Protocol.ANY, Purpose.EPHEMERAL, lifetime=3600)


@pytest.fixture
def table() -> LeaseTable:
    return LeaseTable(POOL)


@pytest.fixture
def grant(table: LeaseTable) -> Callable[..., LeaseRecord]:
    return lambda host, want, now=0.0: give(table, host, want, now)


def give(table: LeaseTable, host: bytes, want: Want, now: float = 0.0) -> LeaseRecord:
    transaction = random.getrandbits(64)
    return table.grant(host, LAN, want, transaction, now, choose=random.randrange)[0]


def specific(first: int, count: int = 1, protocol: Protocol = Protocol.UDP, **more: object) -> Want:
    return Want(count, protocol, Purpose.EXPLICIT, first=first, lifetime=3600, **more)  # type: ignore[arg-type]


def refusal(table: LeaseTable, host: bytes, want: Want, now: float = 0.0) -> LeaseRefused:
    with pytest.raises(LeaseRefused) as caught:
        give(table, host, want, now)
    return caught.value


def test_blocks_are_aligned_and_not_predictable(table: LeaseTable) -> None:
    first = [give(LeaseTable(POOL), A, ANY_BLOCK).ports.first for _ in range(100)]
    assert {each % 64 for each in first} == {0}
    assert len(set(first)) == 8


def test_identifiers_grow_with_time_and_differ_within_a_moment(table: LeaseTable) -> None:
    moment, later = (
        give(table, A, Want(1, Protocol.UDP, Purpose.EXPLICIT, lifetime=60), now) for now in (2e9, 2e9 + 0.001)
    )
    assert 0 < moment.id < later.id < 2**63
    draws = itertools.chain([0] * 4, itertools.count())
    same = [table.grant(B, LAN, ANY_BLOCK, n, 2e9, choose=lambda n: next(draws) % n)[0].id for n in range(2)]
    assert len({*same, moment.id}) == 3


def test_small_wants_leave_whole_blocks_to_others(table: LeaseTable) -> None:
    for n in range(64):
        give(table, n.to_bytes(16, "big"), Want(1, Protocol.UDP, Purpose.EXPLICIT, lifetime=60))
    for _ in range(7):
        assert len(give(table, A, ANY_BLOCK).ports) == 64


def test_protocols_have_ports_of_their_own_and_any_excludes_them_all(table: LeaseTable) -> None:
    for protocol in (Protocol.UDP, Protocol.TCP, Protocol.ICMP):
        give(table, A, specific(1024, protocol=protocol))
        assert refusal(table, B, specific(1024, protocol=Protocol.ANY)).refusal is Refusal.TAKEN
    give(table, A, specific(1025, protocol=Protocol.ANY))
    assert refusal(table, B, specific(1025, protocol=Protocol.TCP)).refusal is Refusal.TAKEN


def test_well_known_ports_go_only_to_who_names_them(table: LeaseTable) -> None:
    for _ in range(8):
        give(table, A, replace(ANY_BLOCK, exact=True))
    assert refusal(table, A, Want(1, Protocol.UDP, Purpose.EXPLICIT)).refusal is Refusal.EXHAUSTED
    assert give(table, A, specific(5060, 2)).ports == PortRange(5060, 5061)
    assert refusal(table, A, specific(80)).refusal is Refusal.OUTSIDE_POOL
    assert refusal(table, A, specific(1535, 2)).refusal is Refusal.OUTSIDE_POOL


def test_a_released_well_known_port_is_not_given_to_a_want_by_count(table: LeaseTable) -> None:
    record = give(table, A, specific(5060))
    table.release(record.id, A, 1.0)
    again = give(table, A, Want(1, Protocol.UDP, Purpose.EXPLICIT, lifetime=60), 2.0)
    assert again.ports.first != 5060


def test_fewer_is_the_longest_run_there_is(table: LeaseTable) -> None:
    give(table, A, specific(1200, protocol=Protocol.ANY))
    assert give(table, A, Want(400, Protocol.TCP, Purpose.EPHEMERAL)).ports == PortRange(1201, 1535)
    odd = Want(400, Protocol.TCP, Purpose.EPHEMERAL, Parity.ODD)
    assert give(table, A, odd).ports == PortRange(1025, 1199)
    assert refusal(table, A, Want(400, Protocol.TCP, Purpose.EPHEMERAL, exact=True)).refusal is Refusal.EXHAUSTED


def test_a_freed_range_waits_for_its_former_holder(table: LeaseTable) -> None:
    record = give(table, A, specific(1100, 4))
    changes = table.release(record.id, A, 10.0)
    hold = HoldRecord(EXTERNAL, record.ports, Protocol.UDP, record.purpose, A, 130.0)
    assert changes == (DropLease(record.id), PutHold(hold))
    held = refusal(table, B, specific(1103), 20.5)
    assert (held.refusal, held.retry_after) == (Refusal.HELD, 110)
    table.expire(129.9)
    refusal(table, B, specific(1103), 129.9)
    assert table.expire(130.0) == (DropHold(*hold.key),)
    assert give(table, B, specific(1103), 130.0).ports.first == 1103


def test_a_part_of_a_held_range_leaves_the_rest_on_hold(table: LeaseTable) -> None:
    record = give(table, A, specific(1100, 10, Protocol.ANY))
    table.release(record.id, A, 0.0)
    table.grant(A, LAN, specific(1103, 2, Protocol.UDP), 1, 1.0, choose=random.randrange)
    held = {(str(hold.ports), hold.protocol) for hold in table.holds}
    assert held == {
        ("1100-1102", Protocol.ANY),
        ("1105-1109", Protocol.ANY),
        ("1103-1104", Protocol.TCP),
        ("1103-1104", Protocol.ICMP),
    }
    assert refusal(table, B, specific(1103, protocol=Protocol.TCP), 1.0).refusal is Refusal.HELD
    assert refusal(table, B, specific(1103, protocol=Protocol.UDP), 1.0).refusal is Refusal.TAKEN


def test_down_and_up_gives_every_lease_its_old_range(table: LeaseTable) -> None:
    wants = [replace(ANY_BLOCK, purpose=purpose) for purpose in Purpose]
    before = [give(table, A, want) for want in wants]
    for record in before:
        table.release(record.id, A, 1.0)
    after = [give(table, A, want, 2.0) for want in reversed(wants)][::-1]
    assert [each.ports for each in after] == [each.ports for each in before]


def test_the_old_range_comes_back_from_a_hold_after_a_restart(table: LeaseTable) -> None:
    before = give(table, A, ANY_BLOCK)
    table.release(before.id, A, 1.0)
    again = LeaseTable(POOL)
    again.load([], table.holds)
    assert give(again, A, ANY_BLOCK, 2.0).ports == before.ports


def test_the_old_range_comes_back_after_the_hold_if_it_is_free(table: LeaseTable) -> None:
    before = give(table, A, ANY_BLOCK)
    table.release(before.id, A, 1.0)
    table.expire(1000.0)
    assert table.holds == ()
    assert give(table, A, ANY_BLOCK, 1000.0).ports == before.ports


def test_expiry(table: LeaseTable) -> None:
    record = give(table, A, ANY_BLOCK)
    assert table.next_deadline() == 3600.0
    renewed, changes = table.renew(record.id, A, 1000.0, 3000.0)
    assert renewed == replace(record, expires_at=4000.0)
    assert changes == (PutLease(renewed),)
    assert table.expire(3999.0) == ()
    assert table.renew(record.id, A, 1000.0, 4000.0) == (None, ())
    assert table.expire(4100.0)[0] == DropLease(record.id)
    assert [hold.until for hold in table.holds] == [4220.0]
    assert table.next_deadline() == 4220.0


def test_only_the_holder_renews_and_releases(table: LeaseTable) -> None:
    record = give(table, A, ANY_BLOCK)
    assert table.renew(record.id, B, 100.0, 1.0) == (None, ())
    assert table.release(record.id, B, 1.0) == ()
    assert table.get(record.id) == record


def test_a_lease_is_known_by_its_transaction(table: LeaseTable) -> None:
    record, _ = table.grant(A, LAN, ANY_BLOCK, 77, 0.0, choose=random.randrange)
    assert table.of_transaction(A, 77) == record
    assert table.of_transaction(B, 77) is None
    table.release(record.id, A, 1.0)
    assert table.of_transaction(A, 77) is None


def test_a_host_stays_on_its_address_and_new_ones_spread() -> None:
    table = LeaseTable(Pool((EXTERNAL, SECOND), (PortRange(1024, 1151),)))
    assert {give(table, host, ANY_BLOCK).address for host in (A, B)} == {EXTERNAL, SECOND}
    for host in (A, B):
        give(table, host, ANY_BLOCK)
        assert len({record.address for record in table.of_host(host)}) == 1
        assert refusal(table, host, ANY_BLOCK).refusal is Refusal.EXHAUSTED


def test_a_host_comes_back_to_the_address_it_had() -> None:
    table = LeaseTable(Pool((EXTERNAL, SECOND), (PortRange(1024, 1151),)))
    record = give(table, A, replace(ANY_BLOCK, address=SECOND))
    table.release(record.id, A, 0.0)
    assert give(table, A, Want(1, Protocol.TCP, Purpose.EXPLICIT), 1.0).address == SECOND
    assert refusal(table, B, replace(ANY_BLOCK, address=LAN)).refusal is Refusal.OUTSIDE_POOL


def test_records_that_contradict_each_other_are_not_loaded(table: LeaseTable) -> None:
    record = give(table, A, ANY_BLOCK)
    port = PortRange(record.ports.last, record.ports.last)
    hold = HoldRecord(EXTERNAL, port, Protocol.TCP, Purpose.EXPLICIT, B, 100.0)
    other = replace(record, id=1, ports=port, protocol=Protocol.ICMP)
    for records, holds in (
        ([record, record], []),
        ([record, other], []),
        ([record], [hold]),
        ([], [hold, hold]),
    ):
        with pytest.raises(LeaseConflict):
            LeaseTable(POOL).load(records, holds)


def test_leases_outside_a_changed_pool_stand_and_are_named() -> None:
    table = LeaseTable(Pool((SECOND,), (PortRange(1024, 1535),)))
    old = give(LeaseTable(POOL), A, ANY_BLOCK)
    kept = replace(old, id=1, address=SECOND)
    table.load([old, kept], [])
    assert table.strays() == (old,)
    assert table.renew(old.id, A, 100.0, 1.0)[0] is not None
    assert table.revoke(old.id, 2.0)[0] is not None
    assert table.strays() == ()


def test_a_host_that_moved_is_found_at_its_new_address(table: LeaseTable) -> None:
    record = give(table, A, ANY_BLOCK)
    moved = replace(record, host=IPv4Address("10.66.0.99"))
    assert table.move(A, moved.host) == (PutLease(moved),)
    assert table.move(A, moved.host) == ()
    assert table.get(record.id) == moved


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 0},
        {"count": 65536},
        {"lifetime": -1},
        {"first": 0},
        {"first": 65535},
        {"first": 5061, "parity": Parity.EVEN},
        {"address": IPv4Address(0)},
    ],
)
def test_wants_that_cannot_be(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"not|no external"):
        Want(**{"count": 2, "protocol": Protocol.UDP, "purpose": Purpose.EXPLICIT, **fields})  # type: ignore[arg-type]


def test_pools_that_cannot_be() -> None:
    for addresses, ports in (((), POOL.ports), ((EXTERNAL, EXTERNAL), POOL.ports), ((EXTERNAL,), ())):
        with pytest.raises(ValueError, match="pool needs"):
            Pool(addresses, ports)
