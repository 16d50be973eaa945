"""Agents and a server talking over a bad link; each test reads as a transcript."""

from __future__ import annotations

import pytest
from pap_link import EXTERNAL, FOUR_BLOCKS, LAN, Network

from dnat.leases.pool import Pool
from dnat.pap.codec import encode
from dnat.pap.events import Granted, Lost, Refused, Renewed, Unanswered
from dnat.pap.messages import Message, MessageType, Result, Want
from dnat.pap.policy import Policy
from dnat.types import Parity, PortRange, Protocol, Purpose

BLOCK = Want(64, Protocol.ANY, Purpose.EPHEMERAL)
SIP = Want(1, Protocol.UDP, Purpose.EXPLICIT, first=5060)


@pytest.fixture
def net() -> Network:
    return Network()


def test_request(net: Network) -> None:
    phone = net.host("phone", 11)
    ticket = phone.agent.want(BLOCK, net.now)
    net.run(1)
    net.expect("""
        0.00 phone > server: REQUEST want 64 any ephemeral
        0.01 server > phone: RESPONSE success 20608-20671/any 3600s
        0.02 phone: granted 20608-20671
    """)
    assert phone.events == [Granted(ticket, phone.agent.leases[0], fewer=False)]
    assert net.store.leases[phone.agent.leases[0].id].host == phone.address


def test_a_lost_request_is_repeated(net: Network) -> None:
    phone = net.host("phone", 11)
    net.lose("REQUEST", 2)
    phone.agent.want(BLOCK, net.now)
    net.run(1)
    net.expect("""
        0.00 phone > server: REQUEST want 64 any ephemeral (lost)
        0.25 phone > server: REQUEST want 64 any ephemeral (lost)
        0.75 phone > server: REQUEST want 64 any ephemeral
        0.76 server > phone: RESPONSE success 20480-20543/any 3600s
        0.77 phone: granted 20480-20543
    """)


def test_a_lost_answer_is_repeated_and_nothing_granted_twice(net: Network) -> None:
    phone = net.host("phone", 11)
    net.lose("RESPONSE")
    phone.agent.want(BLOCK, net.now)
    net.run(1)
    net.expect("""
        0.00 phone > server: REQUEST want 64 any ephemeral
        0.01 server > phone: RESPONSE success 20608-20671/any 3600s (lost)
        0.25 phone > server: REQUEST want 64 any ephemeral
        0.26 server > phone: RESPONSE success 20608-20671/any 3599s
        0.27 phone: granted 20608-20671
    """)
    assert len(net.store.leases) == 1


def test_a_lost_answer_is_repeated_even_after_a_restart(net: Network) -> None:
    phone = net.host("phone", 11)
    net.lose("RESPONSE")
    phone.agent.want(BLOCK, net.now)
    net.run(0.1)
    net.stop_server()
    net.start_server()
    net.run(1)
    net.expect("""
        0.00 phone > server: REQUEST want 64 any ephemeral
        0.01 server > phone: RESPONSE success 20608-20671/any 3600s (lost)
        0.25 phone > server: REQUEST want 64 any ephemeral
        0.26 server > phone: RESPONSE success 20608-20671/any 3599s
        0.27 phone: granted 20608-20671
    """)
    assert len(net.store.leases) == 1


def test_datagrams_that_arrive_twice_change_nothing(net: Network) -> None:
    phone = net.host("phone", 11)
    net.repeat("REQUEST")
    phone.agent.want(BLOCK, net.now)
    net.run(1)
    net.expect("""
        0.00 phone > server: REQUEST want 64 any ephemeral
        0.01 server > phone: RESPONSE success 20608-20671/any 3600s
        0.01 server > phone: RESPONSE success 20608-20671/any 3600s
        0.02 phone: granted 20608-20671
    """)
    assert phone.agent.counters == {"no-open-question": 1}
    assert net.server is not None
    assert net.server.counters == {"want-success": 1, "repeat": 1}


def test_a_repeat_is_not_answered_before_the_commit(net: Network) -> None:
    phone = net.host("phone", 11)
    net.commit_time = 0.5
    phone.agent.want(BLOCK, net.now)
    net.run(1)
    net.expect("""
        0.00 phone > server: REQUEST want 64 any ephemeral
        0.25 phone > server: REQUEST want 64 any ephemeral
        0.51 server > phone: RESPONSE success 20608-20671/any 3600s
        0.52 phone: granted 20608-20671
    """)


def test_a_crash_during_the_commit_leaves_no_answer_behind(net: Network) -> None:
    phone = net.host("phone", 11)
    net.commit_time = 0.1
    phone.agent.want(BLOCK, net.now)
    net.run(0.05)
    net.stop_server()
    assert not net.store.leases
    net.start_server()
    net.run(1)
    net.expect("""
        0.00 phone > server: REQUEST want 64 any ephemeral
        0.25 phone > server: REQUEST want 64 any ephemeral
        0.36 server > phone: RESPONSE success 20544-20607/any 3600s
        0.37 phone: granted 20544-20607
    """)


def test_a_store_that_fails_grants_nothing(net: Network) -> None:
    phone = net.host("phone", 11)
    net.broken_until = 1.0
    phone.agent.want(BLOCK, net.now)
    net.run(1)
    phone.agent.want(BLOCK, net.now)
    net.run(1)
    net.expect("""
        0.00 phone > server: REQUEST want 64 any ephemeral
        0.01 server > phone: RESPONSE store-failed
        0.02 phone: the store failed
        0.02 phone: refused store-failed
        1.00 phone > server: REQUEST want 64 any ephemeral
        1.01 server > phone: RESPONSE success 20608-20671/any 3600s
        1.02 phone: granted 20608-20671
    """)
    assert net.server is not None
    assert list(net.server.table) == list(net.store.leases.values())


def test_a_lost_store_failed_is_not_repeated_but_asked_anew(net: Network) -> None:
    phone = net.host("phone", 11)
    net.broken_until = 0.1
    net.lose("RESPONSE")
    phone.agent.want(BLOCK, net.now)
    net.run(1)
    block = phone.ports[0]
    net.expect(f"""
        0.00 phone > server: REQUEST want 64 any ephemeral
        0.01 server > phone: RESPONSE store-failed (lost)
        0.25 phone > server: REQUEST want 64 any ephemeral
        0.26 server > phone: RESPONSE success {block}/any 3600s
        0.27 phone: granted {block}
    """)


def test_questions_that_wait_behind_a_failed_commit_fail_with_it(net: Network) -> None:
    one, two = net.host("one", 11), net.host("two", 12)
    net.commit_time, net.broken_until = 0.1, 0.5
    one.agent.want(BLOCK, net.now)
    net.run(0.05)
    two.agent.want(BLOCK, net.now)
    net.run(0.15)
    net.expect("""
        0.00 one > server: REQUEST want 64 any ephemeral
        0.05 two > server: REQUEST want 64 any ephemeral
        0.11 server > one: RESPONSE store-failed
        0.11 server > two: RESPONSE store-failed
        0.12 one: the store failed
        0.12 one: refused store-failed
        0.12 two: the store failed
        0.12 two: refused store-failed
    """)


def test_nobody_answers(net: Network) -> None:
    phone = net.host("phone", 11)
    net.stop_server()
    ticket = phone.agent.want(SIP, net.now)
    net.run(20)
    net.expect("""
        0.00 phone > server: REQUEST want 5060 udp explicit
        0.25 phone > server: REQUEST want 5060 udp explicit
        0.75 phone > server: REQUEST want 5060 udp explicit
        1.75 phone > server: REQUEST want 5060 udp explicit
        3.75 phone > server: REQUEST want 5060 udp explicit
        7.75 phone > server: REQUEST want 5060 udp explicit
        8.75 phone: unanswered after 6
    """)
    assert phone.events == [Unanswered(ticket, 6)]
    assert phone.agent.next_deadline is None


def test_a_grant_that_comes_too_late_is_given_back(net: Network) -> None:
    phone = net.host("phone", 11)
    net.fate = lambda octets: [10.0 if octets[1] == 1 else 0.01]
    phone.agent.want(SIP, net.now)
    net.run(9)
    net.fate = lambda octets: [0.01]
    net.silent(2)
    assert phone.ports == []
    assert not net.store.leases
    assert [hold.ports.first for hold in net.store.holds.values()] == [5060]
    assert phone.agent.next_deadline is None


def test_renewal_at_half_life(net: Network) -> None:
    net.policy = Policy((LAN,), lifetime=60)
    net.start_server()
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    net.silent(1)
    lease = phone.agent.leases[0]
    net.run(60)
    net.expect(f"""
        30.00 phone > server: REQUEST {lease.ports}/any
        30.01 server > phone: RESPONSE success {lease.ports}/any 60s
        30.02 phone: renewed {lease.ports} until 90.00
        60.00 phone > server: REQUEST {lease.ports}/any
        60.01 server > phone: RESPONSE success {lease.ports}/any 60s
        60.02 phone: renewed {lease.ports} until 120.00
    """)


def test_leases_of_one_age_are_renewed_together(net: Network) -> None:
    net.policy = Policy((LAN,), lifetime=60)
    net.start_server()
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    phone.agent.want(SIP, net.now)
    net.silent(29)
    net.run(2)
    assert [line for line in net.transcript() if "REQUEST" in line] == [
        f"30.00 phone > server: REQUEST {phone.ports[0]}/any 5060/udp"
    ]


def test_a_lease_works_until_it_expires_unanswered(net: Network) -> None:
    net.policy = Policy((LAN,), lifetime=60)
    net.start_server()
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(29)
    net.stop_server()
    net.run(30.9)
    assert phone.ports == ["5060"]
    net.run(1)
    net.expect("""
        30.00 phone > server: REQUEST 5060/udp
        30.25 phone > server: REQUEST 5060/udp
        30.75 phone > server: REQUEST 5060/udp
        31.75 phone > server: REQUEST 5060/udp
        33.75 phone > server: REQUEST 5060/udp
        37.75 phone > server: REQUEST 5060/udp
        45.75 phone: unanswered after 6
        45.75 phone > server: REQUEST 5060/udp
        60.00 phone: lost 5060 expired
    """)
    assert phone.ports == []


def test_a_dead_host_loses_its_ports_to_others_after_the_hold(net: Network) -> None:
    net.policy = Policy((LAN,), lifetime=60)
    net.start_server()
    dead, other = net.host("dead", 11), net.host("other", 12)
    dead.agent.want(SIP, net.now)
    net.silent(1)
    del net.hosts[dead.address]
    for _ in range(3):
        other.agent.want(SIP, net.now)
        net.run(69)
    other.agent.want(SIP, net.now)
    net.run(1)
    net.expect("""
        1.00 other > server: REQUEST want 5060 udp explicit
        1.01 server > other: RESPONSE port-taken
        1.02 other: refused port-taken
        70.00 other > server: REQUEST want 5060 udp explicit
        70.01 server > other: RESPONSE port-held retry after 110s
        70.02 other: refused port-held
        139.00 other > server: REQUEST want 5060 udp explicit
        139.01 server > other: RESPONSE port-held retry after 41s
        139.02 other: refused port-held
        208.00 other > server: REQUEST want 5060 udp explicit
        208.01 server > other: RESPONSE success 5060/udp 60s
        208.02 other: granted 5060
    """)


def test_release_and_the_same_ports_again(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    net.silent(1)
    before = phone.ports
    net.lose("ACK")
    phone.agent.release(phone.agent.leases[0].id, net.now)
    assert phone.ports == []
    net.run(1)
    net.expect(f"""
        1.00 phone > server: RELEASE {before[0]}/any
        1.01 server > phone: ACK success (lost)
        1.25 phone > server: RELEASE {before[0]}/any
        1.26 server > phone: ACK success
        1.27 phone: released
    """)
    assert not net.store.leases
    phone.agent.want(BLOCK, net.now)
    net.run(1)
    assert phone.ports == before


def test_fewer_and_exhausted(net: Network) -> None:
    one, two = net.host("one", 11), net.host("two", 12)
    one.agent.want(Want(200, Protocol.ANY, Purpose.EPHEMERAL), net.now)
    net.silent(1)
    two.agent.want(BLOCK, net.now)
    net.run(1)
    two.agent.want(Want(64, Protocol.UDP, Purpose.TRANSLATED, exact=True), net.now)
    net.run(1)
    free = 256 - 200
    granted = two.events[0]
    assert isinstance(granted, Granted)
    assert granted.fewer
    assert len(granted.lease.ports) <= free
    assert net.transcript()[-2:] == [
        "2.01 server > two: RESPONSE pool-exhausted",
        "2.02 two: refused pool-exhausted",
    ]


def test_specific_ports_and_ports_outside_the_pool(net: Network) -> None:
    phone = net.host("phone", 11)
    for first in (5060, 80):
        phone.agent.want(Want(1, Protocol.TCP, Purpose.EXPLICIT, first=first), net.now)
    net.run(1)
    net.expect("""
        0.00 phone > server: REQUEST want 5060 tcp explicit
        0.00 phone > server: REQUEST want 80 tcp explicit
        0.01 server > phone: RESPONSE success 5060/tcp 3600s
        0.01 server > phone: RESPONSE outside-pool
        0.02 phone: granted 5060
        0.02 phone: refused outside-pool
    """)


@pytest.mark.parametrize(("parity", "rest"), [(Parity.EVEN, 0), (Parity.ODD, 1)])
def test_parity(net: Network, parity: Parity, rest: int) -> None:
    phone = net.host("phone", 11)
    for _ in range(5):
        phone.agent.want(Want(3, Protocol.UDP, Purpose.EXPLICIT, parity), net.now)
    net.run(1)
    assert [lease.ports.first % 2 for lease in phone.agent.leases] == [rest] * 5


def test_quota(net: Network) -> None:
    net.policy = Policy((LAN,), max_ports_per_host=100, max_leases_per_host=3)
    net.start_server()
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    phone.agent.want(Want(64, Protocol.UDP, Purpose.EPHEMERAL, exact=True), net.now)
    phone.agent.want(BLOCK, net.now)
    phone.agent.want(SIP, net.now)
    net.run(1)
    assert [line.partition(" phone: ")[2] for line in net.transcript() if ">" not in line] == [
        f"granted {phone.ports[0]}",
        "refused quota-exceeded",
        f"granted {phone.ports[1]}, fewer",
        "refused quota-exceeded",
    ]
    assert sum(len(lease.ports) for lease in phone.agent.leases) == 100


def test_invalidation_is_repeated_until_acknowledged(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert net.server is not None
    net.lose("INVALIDATE", 2)
    net.server.invalidate([phone.agent.leases[0].id], Result.ADMINISTRATIVE, net.now)
    net.run(0.7)
    assert phone.ports == ["5060"]
    net.lose("ACK")
    net.run(10)
    net.expect("""
        1.00 server > phone: INVALIDATE administrative 5060/udp (lost)
        1.25 server > phone: INVALIDATE administrative 5060/udp (lost)
        1.75 server > phone: INVALIDATE administrative 5060/udp
        1.76 phone: lost 5060 administrative
        1.76 phone > server: ACK success (lost)
        2.75 server > phone: INVALIDATE administrative 5060/udp
        2.76 phone > server: ACK success
    """)


def test_invalidation_is_given_up_after_two_minutes(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert net.server is not None
    net.lose("INVALIDATE", 1000)
    net.server.invalidate([phone.agent.leases[0].id], Result.ADMINISTRATIVE, net.now)
    net.run(1000)
    times = [float(line.split()[0]) for line in net.transcript() if "INVALIDATE" in line]
    assert times[:7] == [1.0, 1.25, 1.75, 2.75, 4.75, 8.75, 16.75]
    assert 110 < times[-1] <= 121


def test_no_invalidation_leaves_before_it_is_durable(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert net.server is not None
    net.commit_time = 0.6
    net.server.invalidate([phone.agent.leases[0].id], Result.ADDRESS_CHANGED, net.now)
    net.run(1)
    net.expect("""
        1.60 server > phone: INVALIDATE address-changed 5060/udp
        1.61 phone: lost 5060 address-changed
        1.61 phone > server: ACK success
    """)


def test_an_invalidate_that_overtakes_the_grant_wins(net: Network) -> None:
    phone = net.host("phone", 11)
    net.fate = lambda octets: [1.0 if octets[1] == 1 else 0.01]
    phone.agent.want(SIP, net.now)
    net.run(0.02)
    assert net.server is not None
    net.server.invalidate(list(net.store.leases), Result.ADMINISTRATIVE, net.now)
    net.run(3)
    assert phone.ports == []
    assert not net.store.leases
    assert net.transcript()[-1].endswith("phone: refused reclaimed")


def test_ports_never_leased_are_named_without_an_identifier(net: Network) -> None:
    phone, thief = net.host("phone", 11), net.host("thief", 12)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert net.server is not None
    net.server.offence(thief.address, EXTERNAL, 5060, Protocol.UDP, net.now)
    net.server.offence(thief.address, EXTERNAL, 5060, Protocol.UDP, net.now)
    net.run(1)
    net.server.offence(phone.address, EXTERNAL, 5060, Protocol.UDP, net.now)
    net.run(1)
    net.expect("""
        1.00 server > thief: INVALIDATE not-owner 5060/udp
        1.01 thief > server: ACK success
    """)
    assert phone.ports == ["5060"]
    assert net.server.counters["offence-not-told"] == 1
    assert net.server.counters["offence-stale"] == 1


def test_a_host_that_holds_ports_of_another_stops_using_them(net: Network) -> None:
    phone, thief = net.host("phone", 11), net.host("thief", 12)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    thief.agent.adopt(phone.agent.leases, net.now)
    assert thief.ports == ["5060"]
    net.lose("REQUEST")
    assert net.server is not None
    net.server.offence(thief.address, EXTERNAL, 5060, Protocol.UDP, net.now)
    net.run(1)
    assert (thief.ports, phone.ports) == ([], ["5060"])
    assert [event.result for event in thief.events if isinstance(event, Lost)] == [Result.NOT_OWNER]


def test_a_lease_is_renewed_and_released_only_by_its_holder(net: Network) -> None:
    phone, thief = net.host("phone", 11), net.host("thief", 12)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    before = dict(net.store.leases)
    thief.agent.adopt(phone.agent.leases, net.now)
    thief.agent.release(phone.agent.leases[0].id, net.now)
    net.run(1)
    net.expect("""
        1.00 thief > server: REQUEST 5060/udp
        1.00 thief > server: RELEASE 5060/udp
        1.01 server > thief: RESPONSE success 5060/udp 0s
        1.01 server > thief: ACK success
        1.02 thief: released
    """)
    assert net.store.leases == before


def test_a_host_that_forgot_everything_resumes(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    ports = phone.ports
    net.reboot(phone)
    phone.agent.resume(net.now)
    net.run(1)
    net.expect(f"""
        1.00 phone > server: REQUEST resume
        1.01 server > phone: RESPONSE success {ports[0]}/any 3600s 5060/udp 3600s
        1.02 phone: resumed {ports[0]} 5060
    """)
    assert phone.ports == ports
    assert {record.expires_at for record in net.store.leases.values()} == {1.01 + 3600}


def test_resume_never_shortens_a_lease(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(Want(1, Protocol.UDP, Purpose.EXPLICIT, lifetime=80000), net.now)
    net.run(1)
    phone.agent.resume(net.now)
    net.run(1)
    assert [record.expires_at for record in net.store.leases.values()] == [pytest.approx(80000.01)]


def test_a_restarted_agent_goes_on_with_saved_leases(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    saved, epoch = phone.agent.leases, phone.agent.epoch_state
    net.reboot(phone)
    phone.agent.adopt(saved, net.now, epoch)
    assert phone.ports == ["5060"]
    net.run(1)
    net.expect("""
        1.00 phone > server: REQUEST 5060/udp
        1.01 server > phone: RESPONSE success 5060/udp 3600s
        1.02 phone: renewed 5060 until 3601.00
    """)


def test_saved_leases_that_have_expired_are_lost(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    saved = phone.agent.leases
    net.reboot(phone)
    phone.agent.adopt(saved, 4000.0)
    assert phone.ports == []
    assert phone.agent.events() == [Lost(saved[0], None, "expired before the server renewed it")]
    assert phone.agent.datagrams() == []


def test_the_server_restarts_and_nobody_notices(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    net.silent(1000)
    before = phone.agent.leases
    net.stop_server()
    net.silent(100)
    net.start_server()
    net.run(800)
    net.expect(f"""
        1800.00 phone > server: REQUEST {before[0].ports}/any
        1800.01 server > phone: RESPONSE success {before[0].ports}/any 3600s
        1800.02 phone: renewed {before[0].ports} until 5400.00
    """)
    assert phone.agent.leases[0].id == before[0].id


def test_the_server_lost_its_store_and_gets_it_back_from_the_hosts(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    net.silent(1)
    phone.agent.want(SIP, net.now)
    net.silent(1000)
    block = phone.agent.leases[0]
    net.lose_store()
    net.run(800)
    net.expect(f"""
        1800.00 phone > server: REQUEST {block.ports}/any
        1800.01 server > phone: RESPONSE success {block.ports}/any 0s
        1800.02 phone: epoch lost
        1800.02 phone > server: REQUEST want {block.ports} any ephemeral
        1800.02 phone > server: REQUEST want 5060 udp explicit
        1800.03 server > phone: RESPONSE success {block.ports}/any 3600s
        1800.03 server > phone: RESPONSE success 5060/udp 3600s
        1800.04 phone: renewed {block.ports} until 5400.02
        1800.04 phone: renewed 5060 until 5400.02
    """)
    assert {lease.id for lease in phone.agent.leases} == set(net.store.leases)
    assert next(event.former_id for event in phone.events if isinstance(event, Renewed)) == block.id


def test_ports_that_another_host_got_after_the_store_was_lost_are_given_up(net: Network) -> None:
    phone, other = net.host("phone", 11), net.host("other", 12)
    phone.agent.want(SIP, net.now)
    net.silent(1000)
    net.lose_store()
    other.agent.want(SIP, net.now)
    net.silent(10)
    phone.agent.resume(net.now)
    net.run(1)
    net.expect("""
        1010.00 phone > server: REQUEST resume
        1010.01 server > phone: RESPONSE success
        1010.02 phone: epoch lost
        1010.02 phone: resumed nothing
        1010.02 phone > server: REQUEST want 5060 udp explicit
        1010.03 server > phone: RESPONSE port-taken
        1010.04 phone: lost 5060 port-taken
    """)
    assert other.ports == ["5060"]


def test_an_old_answer_does_not_look_like_a_lost_store(net: Network) -> None:
    phone = net.host("phone", 11)
    delays = iter([0.01, 20.0, *[0.01] * 100])
    net.fate = lambda octets: [next(delays)] if octets[1] == 1 else [0.01]
    phone.agent.want(SIP, net.now)
    net.run(1)
    phone.agent.resume(net.now)
    net.run(0.1)
    phone.agent.want(BLOCK, net.now)
    net.run(60)
    assert "epoch lost" not in " ".join(net.transcript())
    assert len(phone.ports) == 2


def test_a_host_that_moves_takes_its_ports_along(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    phone.agent.want(SIP, net.now)
    net.run(1)
    net.move(phone, 111)
    phone.agent.resume(net.now)
    net.run(1)
    assert {record.host for record in net.store.leases.values()} == {LAN[111]}


def test_asking_for_ones_own_ports_by_number_renews_them(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.run(100)
    phone.agent.want(SIP, net.now)
    net.run(1)
    assert len(net.store.leases) == len(phone.agent.leases) == 1
    assert next(iter(net.store.leases.values())).expires_at == pytest.approx(100.01 + 3600)


def test_paired_pooling() -> None:
    addresses = (LAN[1], LAN[2])
    net = Network(Pool(addresses, FOUR_BLOCKS.ports))
    hosts = [net.host(f"host{n}", n) for n in range(11, 15)]
    for host in hosts * 2:
        host.agent.want(Want(50, Protocol.UDP, Purpose.EPHEMERAL), net.now)
        net.run(1)
    used = [{lease.address for lease in host.agent.leases} for host in hosts]
    assert [len(each) for each in used] == [1, 1, 1, 1]
    assert sorted(str(each) for one in used for each in one) == sorted(str(each) for each in addresses * 2)


def test_strays_of_a_changed_pool_can_be_taken_back(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    net.pool = Pool((EXTERNAL,), (PortRange(30000, 30999),), (PortRange(5060, 5061),))
    net.start_server()
    assert net.server is not None
    strays = net.server.table.strays()
    net.server.invalidate([record.id for record in strays], Result.ADDRESS_CHANGED, net.now)
    net.run(1)
    assert phone.ports == ["5060"]


def test_a_server_that_lost_its_store_says_so_and_hosts_register_within_a_second(net: Network) -> None:
    phone, other = net.host("phone", 11), net.host("other", 12)
    for host in (phone, other):
        host.agent.want(BLOCK, net.now)
    net.silent(1000)
    held = {host.name: host.ports for host in (phone, other)}
    net.lose_store(learn=10)
    net.silent(1.5)
    assert {host.name: host.ports for host in (phone, other)} == held
    assert sorted(str(record.ports) for record in net.store.leases.values()) == sorted(phone.ports + other.ports)
    net.silent(10)
    assert phone.agent.counters["announce-above-rate"] + phone.agent.counters["announce-no-news"] == 5


def test_a_server_that_learns_grants_nothing_that_may_be_held(net: Network) -> None:
    """A host that comes anew has to wait, even where the old one has not been heard of yet."""
    phone, newcomer = net.host("phone", 11), net.host("newcomer", 12)
    phone.agent.want(SIP, net.now)
    net.silent(1000)
    net.unplugged.add("phone")
    net.lose_store(learn=10)
    newcomer.agent.want(SIP, net.now)
    newcomer.agent.want(BLOCK, net.now)
    net.silent(1)
    assert [event.result for event in newcomer.events if isinstance(event, Refused)] == [Result.BUSY] * 2
    net.unplugged.clear()
    net.silent(8)
    assert phone.ports == ["5060"] and not phone.events[1:-1:-1]
    newcomer.agent.want(SIP, net.now)
    net.silent(2)
    assert newcomer.events[-1] == Refused(3, Result.BUSY, newcomer.events[-1].reason, 2)
    newcomer.agent.want(SIP, net.now)
    newcomer.agent.want(BLOCK, net.now)
    net.silent(1)
    assert isinstance(newcomer.events[-2], Refused) and newcomer.events[-2].result is Result.PORT_TAKEN
    assert isinstance(newcomer.events[-1], Granted)


def test_a_server_that_merely_restarted_disturbs_nobody(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    net.silent(100)
    net.start_server(announce=True)
    net.run(20)
    assert [line for line in net.transcript() if "> server" in line] == []
    assert phone.agent.counters == {"announce-no-news": 6}


def test_a_forged_announcement_costs_one_question(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    net.silent(1000)
    for _ in range(100):
        phone.agent.receive(encode(Message(MessageType.ANNOUNCE, 1, epoch=1)), net.now)
    net.run(5)
    assert len([line for line in net.transcript() if "> server" in line]) == 1
    assert phone.agent.counters == {"announce-above-rate": 99}
    assert len(phone.ports) == 1


def test_an_announcement_ends_a_long_wait_for_an_answer(net: Network) -> None:
    """A renewal that nobody answered is asked again when the server is back without its store, not a minute later."""
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    net.silent(1000)
    net.stop_server()
    net.silent(1100)
    net.lose_store(learn=10)
    net.silent(1.5)
    assert [str(record.ports) for record in net.store.leases.values()] == phone.ports


def test_a_renewal_within_the_grace_finds_its_lease(net: Network) -> None:
    """The host's clock is slow: it asks when its lease has ended for the server already."""
    net.grace = 10
    net.start_server()
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    net.silent(1)
    (lease,) = net.store.leases.values()
    assert net.server is not None
    late = lease.expires_at + 9
    assert net.server.table.expire(late) == ()
    assert net.server.table.renew(lease.id, lease.host_id, 60, late)[0] is not None
    net.start_server()
    assert net.server.table.renew(lease.id, lease.host_id, 60, late + 1)[0] is None
    assert len(net.server.table.expire(late + 1)) == 2
