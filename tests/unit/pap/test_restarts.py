"""Hosts and servers that start anew, with or without what they knew, as transcripts."""

from __future__ import annotations

import pytest
from pap_link import BLOCK, LAN, SIP, Network

from dnat.pap.codec import encode
from dnat.pap.events import Granted, Lost, Refused, Renewed
from dnat.pap.messages import Message, MessageType, Result, Want
from dnat.types import Protocol, Purpose


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
