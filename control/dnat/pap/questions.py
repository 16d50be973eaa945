"""What an agent has asked and not been answered yet."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from dnat.pap.backoff import MAX_INTERVAL, MAX_RENEWAL_INTERVAL, Backoff, Draw
from dnat.pap.codec import encode
from dnat.pap.messages import Message, MessageType, Want
from dnat.pap.states import State, Trigger, next_state
from dnat.types import Lease

PATIENCE = 5
"""Repeats without an answer after which the host is told."""
MAX_HURRIED = 8
"""Times that a question is asked again at once, because an answer said how to ask better."""
LAST_WAIT = 1.0
"""Seconds that the last repeat of a question which is then given up waits for its answer."""


class Kind(enum.Enum):
    """What is asked; each has its own handler for the answer."""

    WANT = enum.auto()
    RENEW = enum.auto()
    REGAIN = enum.auto()
    RESUME = enum.auto()
    RELEASE = enum.auto()
    AGREE = enum.auto()

    @property
    def answer(self) -> MessageType:
        return MessageType.ACK if self is Kind.RELEASE else MessageType.RESPONSE

    @property
    def endless(self) -> bool:
        """Asked until the leases in question have expired."""
        return self in (Kind.RENEW, Kind.REGAIN)


@dataclass(eq=False, slots=True)
class Holding:
    """One lease from want to end."""

    want: Want | None = None
    """What was asked for; None for a lease that was learned of."""
    ticket: int | None = None
    state: State = State.WANTED
    lease: Lease | None = None
    """None while WANTED."""
    since: float = 0.0
    """When the host learned that it holds the lease."""
    next_at: float | None = None
    """When to ask for more time; None while that is being asked, or pointless."""
    deferred: bool = False
    """It was asked for already, in vain."""
    question: Question | None = None
    """The open question about this lease."""

    def trigger(self, trigger: Trigger) -> None:
        """Move on in the state table. Raises IllegalTransition and leaves everything as it was."""
        self.state = next_state(self.state, trigger)

    @property
    def active(self) -> bool:
        """Whether the host may use the ports."""
        return self.state in (State.HELD, State.RENEWING, State.REGAINING)


class Question:
    """A message that is repeated, unchanged, until it is answered."""

    def __init__(self, kind: Kind, message: Message, about: tuple[Holding, ...], now: float, draw: Draw):
        self.kind = kind
        self.transaction = message.transaction
        self.octets = encode(message)
        self.about = about
        self.asked_at = now
        self.hurried = 0
        self._sent_at = now
        self._backoff = Backoff(now, draw, MAX_RENEWAL_INTERVAL if kind.endless else MAX_INTERVAL)
        for holding in about:
            holding.question = self

    @property
    def attempts(self) -> int:
        return 1 + self._backoff.repeats

    @property
    def exhausted(self) -> bool:
        """Whether the repeats after which the host is told have all been sent."""
        return self._backoff.repeats == PATIENCE

    @property
    def due_at(self) -> float:
        """When to repeat it, or to give it up."""
        last = self.exhausted and not self.kind.endless
        return self._sent_at + LAST_WAIT if last else self._backoff.next_at

    def repeated(self, now: float) -> None:
        self._sent_at = now
        self._backoff.repeated(now)

    def hurry(self, at: float) -> None:
        """Repeat it by then."""
        self._backoff.next_at = min(self._backoff.next_at, at)

    @property
    def open(self) -> bool:
        """Whether anything still depends on the answer."""
        return not self.about or any(holding.question is self for holding in self.about)
