"""What a server has answered lately, so that a repeated question is not acted on twice (docs/pap.md, 5)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from dnat.leases.records import Change
from dnat.pap.auth import Key
from dnat.pap.keyring import KeyChange
from dnat.pap.messages import LeaseInfo, Message, MessageType, Result

KEPT = 60.0
"""Seconds that an answer is kept."""
MAX_ANSWERS = 65536
"""More are not kept. Acting again is harmless in the end: grants are known by their transaction."""

Destination = tuple[IPv4Address, int]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Changes, and the datagrams that may leave when the changes are durable. Steps keep their order."""

    changes: tuple[Change, ...]
    datagrams: tuple[tuple[bytes, Destination], ...]
    """Octets and the address and port that they go to."""
    keys: tuple[KeyChange, ...] = ()
    """Changes of the keys; durable before the others."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An admitted question, with what it takes to decide it once more."""

    message: Message
    key: Key | None
    """What it was sealed with."""
    new_key: bool
    """The host is to agree on a new key."""
    source: Destination


@dataclass(slots=True, eq=False)
class Answer:
    """The outcome of one question. Epoch and lifetimes are filled in when it is sent, each time anew."""

    question: MessageType
    host_id: bytes
    transaction: int
    result: Result = Result.SUCCESS
    leases: tuple[LeaseInfo, ...] = ()
    reason: str | None = None
    retry_after: int | None = None
    changes: list[Change] = field(default_factory=list)
    """What has to be durable before it leaves."""
    key_changes: list[KeyChange] = field(default_factory=list)
    key: Key | None = None
    """The key that was agreed on, and seals the answer; otherwise that of the question does."""
    key_share: bytes | None = None
    given_at: float = 0.0
    asked: Asked | None = None
    """Until it is durable."""
    counter: str = ""
    """Under which it was counted."""
    pending: bool = False
    """Its step has been neither committed nor failed."""


class AnswerCache:
    """Answers by host and transaction, for KEPT seconds."""

    def __init__(self) -> None:
        self._answers: OrderedDict[tuple[bytes, int], Answer] = OrderedDict()

    def get(self, host_id: bytes, transaction: int, now: float) -> Answer | None:
        self._forget_old(now)
        return self._answers.get((host_id, transaction))

    def put(self, answer: Answer, now: float) -> None:
        answer.given_at = now
        self._answers[answer.host_id, answer.transaction] = answer
        self._answers.move_to_end((answer.host_id, answer.transaction))
        self._forget_old(now)

    def remove(self, answer: Answer) -> None:
        self._answers.pop((answer.host_id, answer.transaction), None)

    def _forget_old(self, now: float) -> None:
        while self._answers:
            oldest = next(iter(self._answers.values()))
            if oldest.pending or (oldest.given_at + KEPT > now and len(self._answers) <= MAX_ANSWERS):
                break
            self._answers.popitem(last=False)
