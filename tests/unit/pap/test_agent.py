"""What an agent does with what it should not have been sent or asked."""

from __future__ import annotations

import random
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pap_strategies import messages

from dnat.pap.agent import Agent
from dnat.pap.codec import decode, encode
from dnat.pap.epoch import EpochState, went_back
from dnat.pap.events import Granted, Refused, StoreFailed
from dnat.pap.messages import LeaseInfo, Message, MessageType, Result, Want
from dnat.pap.states import IllegalTransition
from dnat.types import Lease, PortRange, Protocol, Purpose

ME, ANOTHER = bytes(16), bytes([1] * 16)
WANT = Want(2, Protocol.UDP, Purpose.EXPLICIT)
INFO = LeaseInfo(9, IPv4Address("198.51.100.1"), PortRange(4000, 4001), Protocol.UDP, Purpose.EXPLICIT, 100)


@pytest.fixture
def agent() -> Agent:
    return Agent(ME, lambda: random.getrandbits(64))


def asked(agent: Agent) -> int:
    """The transaction of the question that it has just sent."""
    return decode(agent.datagrams()[-1]).transaction


def grant(agent: Agent, lease: LeaseInfo = INFO) -> None:
    agent.want(WANT, 0.0)
    agent.receive(encode(Message(MessageType.RESPONSE, asked(agent), host_id=ME, leases=(lease,))), 0.0)


def test_a_lease_cannot_be_released_twice_or_without_being_held(agent: Agent) -> None:
    with pytest.raises(IllegalTransition, match="no lease 9"):
        agent.release(9, 0.0)
    grant(agent)
    agent.release(9, 1.0)
    before = agent.datagrams(), agent.next_deadline
    with pytest.raises(IllegalTransition, match="releasing"):
        agent.release(9, 1.0)
    assert (agent.datagrams(), agent.next_deadline) == ([], before[1])


@pytest.mark.parametrize(
    ("message", "counter"),
    [
        (Message(MessageType.RESPONSE, 1, host_id=ME, leases=(INFO,)), "no-open-question"),
        (Message(MessageType.RESPONSE, 0, host_id=ANOTHER, leases=(INFO,)), "foreign-host"),
        (Message(MessageType.ACK, 0, host_id=ME), "unexpected-type"),
        (Message(MessageType.REQUEST, 0, host_id=ME), "unexpected-type"),
        (Message(MessageType.INVALIDATE, 0, host_id=ANOTHER), "foreign-host"),
        (Message(MessageType.RESPONSE, 0, host_id=ME), "no-lease-in-grant"),
        (Message(MessageType.RESPONSE, 0, host_id=ME, leases=(INFO, INFO)), "no-lease-in-grant"),
    ],
)
def test_what_does_not_answer_the_question_is_counted_and_dropped(agent: Agent, message: Message, counter: str) -> None:
    """Transaction 0 stands for that of the open question."""
    agent.want(WANT, 0.0)
    transaction = asked(agent)
    octets = encode(message)
    if not message.transaction:
        octets = octets[:8] + transaction.to_bytes(8, "big") + octets[16:]
    agent.receive(octets, 0.1)
    assert agent.counters == {counter: 1}
    assert agent.events() == []
    assert agent.datagrams() == []
    agent.receive(encode(Message(MessageType.RESPONSE, transaction, host_id=ME, leases=(INFO,))), 0.2)
    assert isinstance(agent.events()[0], Granted)


@given(st.lists(st.binary(max_size=100) | messages.map(encode), max_size=10))
def test_any_datagram_is_survived(datagrams: list[bytes]) -> None:
    agent = Agent(ME, lambda: random.getrandbits(64))
    grant(agent)
    for datagram in datagrams:
        agent.receive(datagram, 1.0)
    agent.timeout(1000.0)


@given(st.lists(messages, max_size=6))
def test_any_answer_is_survived(answers: list[Message]) -> None:
    """The same, with the transactions of whatever is open."""
    agent = Agent(ME, lambda: random.getrandbits(64))
    agent.want(WANT, 0.0)
    agent.resume(0.0)
    for now, answer in enumerate(answers):
        for question in map(decode, agent.datagrams()):
            octets = encode(answer)
            agent.receive(octets[:8] + question.transaction.to_bytes(8, "big") + octets[16:], float(now))
            agent.timeout(float(now))
        for lease in agent.leases:
            assert lease.expires_at > now


def test_an_invalidate_that_cannot_be_read_is_answered_so(agent: Agent) -> None:
    datagram = bytearray(encode(Message(MessageType.INVALIDATE, 5, Result.ADMINISTRATIVE, leases=(INFO,))))
    datagram[20:22] = b"\x81\x23"
    agent.receive(bytes(datagram), 0.0)
    ack = decode(agent.datagrams()[0])
    assert (ack.type, ack.transaction, ack.result) == (MessageType.ACK, 5, Result.UNSUPPORTED_ATTRIBUTE)
    assert ack.unknown == (0x8123,)


def test_ports_without_an_identifier_take_every_lease_that_overlaps(agent: Agent) -> None:
    leases = [
        Lease(1, INFO.address, PortRange(100, 199), Protocol.UDP, Purpose.EXPLICIT, 1000.0),
        Lease(2, INFO.address, PortRange(150, 150), Protocol.TCP, Purpose.EXPLICIT, 1000.0),
        Lease(3, INFO.address, PortRange(200, 299), Protocol.ANY, Purpose.EPHEMERAL, 1000.0),
        Lease(4, IPv4Address("198.51.100.2"), PortRange(150, 250), Protocol.ANY, Purpose.EXPLICIT, 1000.0),
    ]
    agent.adopt(leases, 0.0)
    named = LeaseInfo(0, INFO.address, PortRange(199, 200), Protocol.UDP, Purpose.EXPLICIT, 0)
    invalidate = encode(Message(MessageType.INVALIDATE, 5, Result.NOT_OWNER, leases=(named,)))
    agent.receive(invalidate, 1.0)
    assert [lease.id for lease in agent.leases] == [2, 4]


def test_a_grant_of_no_time_is_no_grant(agent: Agent) -> None:
    grant(agent, LeaseInfo(9, INFO.address, INFO.ports, INFO.protocol, INFO.purpose, 0))
    assert isinstance(agent.events()[0], Refused)
    assert agent.leases == ()


@pytest.mark.parametrize(
    ("epoch", "asked_at", "lost"),
    [
        (1000, 100.0, False),
        (998, 100.0, False),
        (997, 100.0, True),
        (1160, 260.0, False),
        (1151, 260.0, False),
        (1149, 260.0, True),
        (990, 90.0, False),
        (0, 100.0, True),
    ],
)
def test_when_an_epoch_has_gone_back(epoch: int, asked_at: float, lost: bool) -> None:
    """Last seen: epoch 1000 at 100 s; two seconds, or a sixteenth of the time passed, are tolerated."""
    assert went_back(EpochState(1000, 100.0), epoch, asked_at) is lost


def test_repeats_jitter_by_a_tenth() -> None:
    for draw, when in ((0, 0.225), (2**63, 0.25), (2**64 - 1, 0.275)):
        agent = Agent(ME, lambda draw=draw: draw)  # type: ignore[misc]
        agent.want(WANT, 0.0)
        assert agent.next_deadline == pytest.approx(when)


def test_what_a_failed_store_put_off_is_asked_at_once_when_told_to_hurry(agent: Agent) -> None:
    grant(agent)
    due = agent.next_deadline
    assert due is not None
    agent.timeout(due)
    failed = Message(MessageType.RESPONSE, asked(agent), Result.STORE_FAILED, epoch=int(due), host_id=ME)
    agent.events()
    agent.receive(encode(failed), due)
    assert agent.events() == [StoreFailed()]
    assert agent.next_deadline is not None and agent.next_deadline > due
    agent.hurry(due)
    assert agent.next_deadline == due
    agent.timeout(due)
    assert [each.id for each in decode(agent.datagrams()[-1]).leases] == [INFO.id]


def test_to_hurry_asks_for_nothing_that_is_not_due(agent: Agent) -> None:
    grant(agent)
    due = agent.next_deadline
    agent.datagrams()
    agent.hurry(1.0)
    agent.timeout(1.0)
    assert (agent.datagrams(), agent.next_deadline) == ([], due)
