"""What a server answers to what it should not have been sent."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pap_link import EXTERNAL, FOUR_BLOCKS, LAN
from pap_strategies import messages

from dnat.errors import UsageError
from dnat.leases.table import LeaseTable
from dnat.pap.codec import decode, encode
from dnat.pap.messages import AGENT_PORT, Fault, LeaseInfo, Message, MessageType, Result, Want
from dnat.pap.policy import Policy
from dnat.pap.server import Server
from dnat.types import PortRange, Protocol, Purpose

ME = bytes(16)
HOST = (LAN[11], AGENT_PORT)
WANT = Want(2, Protocol.UDP, Purpose.EXPLICIT)
INFO = LeaseInfo(9, EXTERNAL, PortRange(20480, 20480), Protocol.UDP, Purpose.EXPLICIT, 0)


def new_server() -> Server:
    return Server(LeaseTable(FOUR_BLOCKS), lambda: random.getrandbits(64), Policy((LAN,)), 0.0)


@pytest.fixture
def server() -> Server:
    return new_server()


def answers(server: Server) -> list[Message]:
    """What the server says once everything is durable."""
    result = []
    for step in server.steps():
        server.committed(step, 0.0)
        for octets, target in step.datagrams:
            assert target == HOST
            result.append(decode(octets))
    return result


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(Message(MessageType.REQUEST, 7, host_id=ME), id="no question"),
        pytest.param(Message(MessageType.REQUEST, 7, host_id=ME, want=WANT, resume=True), id="two questions"),
        pytest.param(Message(MessageType.REQUEST, 7, want=WANT), id="nobody's question"),
        pytest.param(Message(MessageType.REQUEST, 7, host_id=ME, leases=(replace(INFO, id=0),)), id="renew no lease"),
        pytest.param(Message(MessageType.RELEASE, 7, host_id=ME), id="release nothing"),
        pytest.param(
            Message(MessageType.RELEASE, 7, host_id=ME, leases=(INFO, replace(INFO, id=0))),
            id="release ports",
        ),
    ],
)
def test_malformed(server: Server, message: Message) -> None:
    server.receive(encode(message), HOST, 0.0)
    (answer,) = answers(server)
    assert (answer.result, answer.transaction) == (Result.MALFORMED, 7)
    assert answer.type is (MessageType.ACK if message.type is MessageType.RELEASE else MessageType.RESPONSE)


def test_attributes_and_versions_that_are_not_understood(server: Server) -> None:
    octets = encode(Message(MessageType.REQUEST, 7, host_id=ME, resume=True))
    server.receive(b"\x02" + octets[1:], HOST, 0.0)
    server.receive(octets[:-4] + b"\x81\x23\0\0", HOST, 0.0)
    version, attribute = answers(server)
    assert version.result is Result.UNSUPPORTED_VERSION
    assert (attribute.result, attribute.unknown, attribute.host_id) == (
        Result.UNSUPPORTED_ATTRIBUTE,
        (0x8123,),
        ME,
    )


@pytest.mark.parametrize(
    ("octets", "source", "counter"),
    [
        (
            encode(Message(MessageType.REQUEST, 7, host_id=ME, want=WANT)),
            IPv4Address("203.0.113.9"),
            "off-lan",
        ),
        (bytes(5), LAN[11], "malformed"),
        (encode(Message(MessageType.RESPONSE, 7, host_id=ME)), LAN[11], "unexpected-type"),
        (encode(Message(MessageType.INVALIDATE, 7, host_id=ME)), LAN[11], "unexpected-type"),
        (encode(Message(MessageType.ACK, 7, host_id=ME)), LAN[11], "no-open-invalidation"),
    ],
)
def test_dropped_in_silence(server: Server, octets: bytes, source: IPv4Address, counter: str) -> None:
    server.receive(octets, (source, AGENT_PORT), 0.0)
    assert server.steps() == []
    assert server.counters == {counter: 1}


def test_an_invalidate_is_acknowledged_only_by_the_host_that_it_went_to(server: Server) -> None:
    server.offence(HOST[0], EXTERNAL, 5060, Protocol.UDP, 0.0)
    (invalidate,) = answers(server)
    ack = encode(Message(MessageType.ACK, invalidate.transaction, host_id=ME))
    server.receive(ack, (LAN[12], AGENT_PORT), 0.1)
    assert server.next_deadline is not None
    server.receive(ack, HOST, 0.1)
    assert server.next_deadline is None


def test_a_warning_is_forgotten_when_the_host_gets_the_ports(server: Server) -> None:
    server.offence(HOST[0], EXTERNAL, 5060, Protocol.UDP, 0.0)
    answers(server)
    want = Want(1, Protocol.UDP, Purpose.EXPLICIT, first=5060)
    server.receive(encode(Message(MessageType.REQUEST, 7, host_id=ME, want=want)), HOST, 0.1)
    assert [each.result for each in answers(server)] == [Result.SUCCESS]
    server.timeout(10.0)
    assert server.steps() == []


def test_the_table_is_not_exchanged_under_a_commit(server: Server) -> None:
    server.receive(encode(Message(MessageType.REQUEST, 7, host_id=ME, want=WANT)), HOST, 0.0)
    (step,) = server.steps()
    with pytest.raises(UsageError, match="being committed"):
        server.reset_table(LeaseTable(FOUR_BLOCKS), 0.0)
    server.failed(step, 0.0)
    server.reset_table(LeaseTable(FOUR_BLOCKS), 0.0)
    assert [each.result for each in answers(server)] == [Result.STORE_FAILED]
    assert len(server.table) == 0


def test_a_store_that_stays_broken_is_not_asked_all_the_time(server: Server) -> None:
    server.receive(encode(Message(MessageType.REQUEST, 7, host_id=ME, want=WANT)), HOST, 0.0)
    answers(server)
    (record,) = server.table
    server.timeout(3600.0)
    (step,) = server.steps()
    table = LeaseTable(FOUR_BLOCKS)
    server.failed(step, 3600.0)
    table.load([record], [])
    server.reset_table(table, 3600.0)
    server.timeout(3600.5)
    assert server.steps() == []
    assert server.next_deadline == 3601.0
    server.timeout(3601.0)
    assert len(server.steps()) == 1


def test_lifetimes_keep_the_policy(server: Server) -> None:
    for transaction, (asked, granted) in enumerate([(0, 3600), (1, 60), (600, 600), (10**6, 86400)]):
        want = replace(WANT, lifetime=asked)
        server.receive(encode(Message(MessageType.REQUEST, transaction, host_id=ME, want=want)), HOST, 0.0)
        assert [each.leases[0].lifetime for each in answers(server)] == [granted]


@pytest.mark.parametrize(
    "fields",
    [{"lifetime": 5}, {"min_lifetime": 0}, {"max_leases_per_host": 33}, {"max_ports_per_host": 0}],
)
def test_a_policy_that_cannot_be(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"lifetime|leases|ports"):
        Policy((LAN,), **fields)


@given(st.lists(st.binary(max_size=100) | messages.map(encode), max_size=10))
def test_any_datagram_is_survived(datagrams: list[bytes]) -> None:
    server = new_server()
    for datagram in datagrams:
        server.receive(datagram, HOST, 0.0)
        answers(server)
    server.timeout(1e6)


def test_results_say_who_is_at_fault() -> None:
    assert Result.FEWER.ok
    assert not Result.MALFORMED.ok
    assert Result.QUOTA_EXCEEDED.fault is Fault.REQUESTER
    assert (Result.PORT_HELD.fault, Result.PORT_HELD.retry) == (Fault.NOBODY, True)
    assert (Result.STORE_FAILED.fault, Result.STORE_FAILED.retry) == (Fault.SERVER, True)
    assert not Result.NOT_AUTHORIZED.retry
