"""Agents and a server talking over a bad link; each test reads as a transcript."""

from __future__ import annotations

import pytest
from pap_link import BLOCK, SIP, Network

from dnat.pap.events import Granted, Unanswered


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


@pytest.mark.parametrize("restarted", [False, True])
def test_a_lost_answer_is_repeated_and_nothing_granted_twice(net: Network, restarted: bool) -> None:
    phone = net.host("phone", 11)
    net.lose("RESPONSE")
    phone.agent.want(BLOCK, net.now)
    net.run(0.1)
    if restarted:
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
