"""The agent of a host: asks for ports, keeps its leases alive, and says when they must not be used any more.

Pure: the caller passes datagrams of its server (and of nobody else) and the time, and calls `timeout` at
`next_deadline`; after each call it sends `datagrams` to the server and reads `events`. The clock is the one
that the leases' ``expires_at`` is told in; a daemon that saves its leases wants the wall clock.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

from dnat.pap.backoff import Draw
from dnat.pap.codec import CodecError, decode, encode
from dnat.pap.credentials import Credentials
from dnat.pap.epoch import EpochState, went_back
from dnat.pap.events import (
    EpochLost,
    Event,
    Granted,
    KeyAgreed,
    Refused,
    Released,
    Renewed,
    Resumed,
    StoreFailed,
    Unanswered,
)
from dnat.pap.holdings import Holdings
from dnat.pap.memory import lease_info, remember
from dnat.pap.messages import MAX_LEASES, Fault, LeaseInfo, Message, MessageType, Result, Want
from dnat.pap.questions import MAX_HURRIED, Holding, Kind, Question
from dnat.pap.states import IllegalTransition, State, Trigger
from dnat.types import Lease

ANNOUNCE_INTERVAL = 10.0
"""Seconds between two ANNOUNCEs that are heeded: anybody on the LAN can send one."""
ANNOUNCE_SPREAD = 1.0
"""Seconds over which all hosts of a LAN spread their questions."""


class Agent:
    """PAP for one host and one server."""

    def __init__(self, host_id: bytes, draw: Draw, credentials: Credentials | None = None) -> None:
        """``host_id``: 16 octets, the same across restarts; ``draw``: 64 random bits per call; without
        credentials it shows no key and no cookie, and believes whatever comes.
        """
        self.credentials = credentials
        self.disbelieved: Result | None = None
        """The last refusal that could not be believed, for want of AUTH: a hint at what is wrong."""
        self.host_id = host_id
        self.counters: Counter[str] = Counter()
        """Datagrams that were dropped, by reason."""
        self.epoch_state: EpochState | None = None
        """The server's last epoch; save it with the leases and give it back to `adopt`."""
        self._draw = draw
        self._tickets = 0
        self._questions: dict[int, Question] = {}
        self._given_up: OrderedDict[int, None] = OrderedDict()
        self._obeyed: OrderedDict[int, None] = OrderedDict()
        self._heed_at = 0.0
        self._outbox: list[bytes] = []
        self._events: list[Event] = []
        self._holdings = Holdings(draw, self._events.append)
        self._answers: dict[Kind, Callable[[Question, Message, float], None]] = {
            Kind.WANT: self._want_answered,
            Kind.RENEW: self._renewal_answered,
            Kind.REGAIN: self._regain_answered,
            Kind.RESUME: self._resume_answered,
            Kind.RELEASE: self._release_answered,
            Kind.AGREE: self._agreement_refused,
        }

    # What the host does

    def want(self, want: Want, now: float) -> int:
        """Ask for ports. The ticket returned names the want in Granted, Refused or Unanswered."""
        self._tickets += 1
        self._ask(Kind.WANT, now, Holding(want=want, ticket=self._tickets), want=want)
        return self._tickets

    def adopt(self, leases: Iterable[Lease], now: float, epoch: EpochState | None = None) -> None:
        """Go on with leases that were saved, and renew them at once; those that have expired are Lost."""
        self.epoch_state = epoch
        for lease in leases:
            self._holdings.adopt(lease, now)
        self.timeout(now)

    def resume(self, now: float) -> None:
        """Ask which leases the host holds; they are renewed, and Resumed lists them."""
        self._ask(Kind.RESUME, now, resume=True)

    def release(self, lease_id: int, now: float) -> None:
        """Give up a lease whose ports are no longer in use. Raises IllegalTransition if it is not held."""
        holding = self._holdings.get(lease_id)
        if holding is None or holding.lease is None:
            raise IllegalTransition(f"no lease {lease_id:x} is held")
        holding.trigger(Trigger.RELEASE)
        holding.next_at = None
        self._ask(Kind.RELEASE, now, holding, leases=(lease_info(holding.lease),))

    def change_key(self, now: float) -> bool:
        """Agree with the server on a new key; False if that is not possible now."""
        credentials = self.credentials
        if credentials is None or not credentials.may_offer(now):
            return False
        self._ask(Kind.AGREE, now, key_share=credentials.offer(now))
        return True

    def hurry(self, now: float) -> None:
        """Ask at once what is open, and what the server could not serve: another one is asked from now on."""
        for question in self._questions.values():
            question.hurry(now)
        self._holdings.hurry(now)

    # What time and the network do

    @property
    def next_deadline(self) -> float | None:
        """When `timeout` has to be called; None if nothing is pending."""
        times = [question.due_at for question in self._questions.values()]
        if (held := self._holdings.next_deadline) is not None:
            times.append(held)
        return min(times, default=None)

    def timeout(self, now: float) -> None:
        """Expire, repeat and renew what is due. Harmless if nothing is."""
        self._holdings.expire(now)
        for question in tuple(self._questions.values()):
            if not question.open:
                del self._questions[question.transaction]
            elif question.due_at <= now:
                self._repeat(question, now)
        self._renew_due(now)

    def receive(self, datagram: bytes, now: float) -> None:
        """Take in a datagram of the server. Never raises, whatever is in it; see `counters`."""
        try:
            message = decode(datagram)
        except CodecError as error:
            self.counters[error.result.label] += 1
            keyless = self.credentials is None or self.credentials.key is None
            if error.type == MessageType.INVALIDATE and error.transaction is not None and keyless:
                self._acknowledge(error.transaction, now, error.result, error.unknown)
            return
        if message.host_id not in (None, self.host_id):
            self.counters["foreign-host"] += 1
        elif message.type is MessageType.ANNOUNCE:
            self._announced(message, now)
        elif message.key_share is not None:
            self._share_came(datagram, message, now)
        elif (doubt := self._doubt(datagram, message, now)) is not None:
            self.counters[doubt] += 1
        elif message.type is MessageType.INVALIDATE:
            self._invalidated(message, now)
        elif message.type in (MessageType.RESPONSE, MessageType.ACK):
            self._answered(message, now)
        else:
            self.counters["unexpected-type"] += 1

    # What comes out

    def datagrams(self) -> list[bytes]:
        """What to send to the server now; each is handed out once."""
        result, self._outbox = self._outbox, []
        return result

    def events(self) -> list[Event]:
        """What happened since the last call."""
        result = list(self._events)
        self._events.clear()
        return result

    @property
    def leases(self) -> tuple[Lease, ...]:
        """The leases whose ports may be used."""
        return self._holdings.leases

    # Asking

    def _ask(
        self,
        kind: Kind,
        now: float,
        *about: Holding,
        want: Want | None = None,
        leases: tuple[LeaseInfo, ...] = (),
        resume: bool = False,
        key_share: bytes | None = None,
    ) -> None:
        type_ = MessageType.RELEASE if kind is Kind.RELEASE else MessageType.REQUEST
        message = Message(
            type_, self._draw(), host_id=self.host_id, want=want, leases=leases, resume=resume, key_share=key_share
        )
        question = Question(kind, message, about, now, self._draw)
        self._questions[question.transaction] = question
        self._send(question.octets, now)

    def _send(self, octets: bytes, now: float) -> None:
        self._outbox.append(octets if self.credentials is None else self.credentials.seal(octets, now))

    def _ask_again(self, question: Question, now: float) -> None:
        """Ask at once, and better than before."""
        if question.hurried < MAX_HURRIED:
            question.hurried += 1
            self._send(question.octets, now)

    def _repeat(self, question: Question, now: float) -> None:
        if question.exhausted:
            if question.kind is Kind.AGREE:
                self._agreement_ended(question)
                return
            ticket = question.about[0].ticket if question.kind is Kind.WANT else None
            self._events.append(Unanswered(ticket, question.attempts))
            if not question.kind.endless:
                self._close(question)
                if question.kind is Kind.WANT:
                    remember(self._given_up, question.transaction)
                for holding in question.about:
                    self._holdings.end(holding, Trigger.GAVE_UP)
                return
        question.repeated(now)
        self._send(question.octets, now)

    def _renew_due(self, now: float) -> None:
        due = self._holdings.due(now)
        renewals = [each for each in due if each.state is State.HELD]
        for start in range(0, len(renewals), MAX_LEASES):
            batch = renewals[start : start + MAX_LEASES]
            for holding in batch:
                holding.trigger(Trigger.RENEWAL_DUE)
                holding.next_at = None
            infos = tuple(lease_info(each.lease) for each in batch if each.lease)
            self._ask(Kind.RENEW, now, *batch, leases=infos)
        for holding in due:
            if holding.state is State.REGAINING:
                self._regain(holding, now)

    def _regain(self, holding: Holding, now: float) -> None:
        """Ask a server that lost its state for the very same ports."""
        lease = holding.lease
        if lease is not None:
            holding.next_at = None
            want = Want(
                count=len(lease.ports),
                protocol=lease.protocol,
                purpose=lease.purpose,
                exact=True,
                first=lease.ports.first,
                address=lease.address,
            )
            self._ask(Kind.REGAIN, now, holding, want=want)

    # Answers

    def _answered(self, message: Message, now: float) -> None:
        question = self._questions.get(message.transaction)
        if question is None or not question.open:
            self.counters["no-open-question"] += 1
            if message.transaction in self._given_up:
                self._give_back(message, now)
        elif message.type is not question.kind.answer:
            self.counters["unexpected-type"] += 1
        elif not self._is_about_credentials(question, message, now):
            last = self.epoch_state
            self.epoch_state = EpochState(message.epoch, now)
            if last is not None and went_back(last, message.epoch, question.asked_at):
                self._epoch_lost(now)
            if message.result is Result.STORE_FAILED:
                self._events.append(StoreFailed())
            if question.open:
                self._answers[question.kind](question, message, now)

    def _epoch_lost(self, now: float) -> None:
        self._events.append(EpochLost())
        for holding in self._holdings:
            if holding.active:
                holding.trigger(Trigger.EPOCH_LOST)
                self._regain(holding, now)

    def _want_answered(self, question: Question, message: Message, now: float) -> None:
        holding = question.about[0]
        ticket = holding.ticket or 0
        if not message.result.ok:
            self._close(question)
            holding.trigger(Trigger.REFUSED)
            self._events.append(Refused(ticket, message.result, message.reason, message.retry_after))
            return
        info = self._granted(message)
        if info is None:
            return
        self._close(question)
        known = self._holdings.get(info.id)
        if self._holdings.is_over(info) or (known is not None and not known.active):
            # The lease was taken back, or given up, while this answer was under way.
            holding.trigger(Trigger.REFUSED)
            self._events.append(Refused(ticket, Result.RECLAIMED, "the lease has ended already", None))
            return
        holding.trigger(Trigger.GRANTED)
        if known is not None:
            known.trigger(Trigger.LEARNED)
            holding = known
        lease = self._holdings.hold(holding, info, question.asked_at, now)
        self._events.append(Granted(ticket, lease, message.result is Result.FEWER))

    def _renewal_answered(self, question: Question, message: Message, now: float) -> None:
        self._close(question)
        listed = {info.id: info for info in message.leases} if message.result.ok else {}
        for holding in question.about:
            if holding.state is not State.RENEWING or holding.lease is None:
                continue
            info = listed.get(holding.lease.id)
            if info is None:
                holding.trigger(Trigger.DEFERRED)
                self._holdings.defer(holding, holding.lease, message, now)
            elif info.lifetime:
                holding.trigger(Trigger.RENEWED)
                self._events.append(Renewed(self._holdings.hold(holding, info, question.asked_at, holding.since)))
            else:
                self._holdings.lose(holding, Trigger.UNKNOWN, Result.RECLAIMED, "the server does not know the lease")

    def _regain_answered(self, question: Question, message: Message, now: float) -> None:
        holding = question.about[0]
        if holding.lease is None:
            return
        if not message.result.ok:
            self._close(question)
            if message.result.fault is Fault.SERVER:
                holding.trigger(Trigger.DEFERRED)
                self._holdings.defer(holding, holding.lease, message, now)
            else:
                reason = message.reason or "the server lost its state and could not grant the ports again"
                self._holdings.lose(holding, Trigger.REFUSED, message.result, reason)
            return
        info = self._granted(message)
        if info is None:
            return
        self._close(question)
        if self._holdings.is_over(info):
            self._holdings.lose(holding, Trigger.REFUSED, Result.RECLAIMED, "the lease has ended already")
            return
        former = holding.lease.id
        self._holdings.forget(former, ended=former != info.id)
        holding.trigger(Trigger.RENEWED)
        self._events.append(Renewed(self._holdings.hold(holding, info, question.asked_at, now), former))

    def _resume_answered(self, question: Question, message: Message, now: float) -> None:
        if message.result.fault is Fault.SERVER:
            return  # the question stays open: the next repeat may find the server well
        self._close(question)
        if not message.result.ok:
            self._events.append(Refused(None, message.result, message.reason, message.retry_after))
            return
        leases = []
        for info in message.leases:
            holding = self._holdings.get(info.id) or Holding()
            if info.id and not self._holdings.is_over(info) and holding.state is not State.RELEASING:
                since = holding.since if holding.lease else now
                holding.trigger(Trigger.LEARNED)
                leases.append(self._holdings.hold(holding, info, question.asked_at, since))
        listed = {info.id for info in message.leases}
        for holding in self._holdings:
            known_to_both = holding.since < question.asked_at and holding.state in (
                State.HELD,
                State.RENEWING,
            )
            if known_to_both and holding.lease and holding.lease.id not in listed:
                self._holdings.lose(holding, Trigger.UNKNOWN, Result.RECLAIMED, "the server does not list the lease")
        self._events.append(Resumed(tuple(leases)))

    def _release_answered(self, question: Question, message: Message, now: float) -> None:
        if message.result.fault is Fault.SERVER:
            return  # the question stays open: the next repeat may find the server well
        self._close(question)
        for holding in question.about:
            if holding.lease is not None and holding.state is State.RELEASING:
                self._holdings.end(holding, Trigger.ACKNOWLEDGED)
                self._events.append(Released(holding.lease.id))

    def _granted(self, message: Message) -> LeaseInfo | None:
        """The one lease of a grant; a message without it is dropped, and its question stays open."""
        if len(message.leases) == 1 and message.leases[0].id:
            return message.leases[0]
        self.counters["no-lease-in-grant"] += 1
        return None

    # Keys and cookies

    def _share_came(self, datagram: bytes, message: Message, now: float) -> None:
        """The server's half of a key agreement: what shows that it is genuine is the new key itself."""
        credentials, question = self.credentials, self._questions.get(message.transaction)
        if credentials is None or question is None or question.kind is not Kind.AGREE:
            self.counters["no-open-question"] += 1
            return
        key = credentials.conclude(datagram, message, now)
        if key is None:
            self.counters["bad-agreement"] += 1
            return
        self._close(question)
        credentials.heard(message.auth, question.asked_at, now)
        self._events.append(KeyAgreed(key))
        for other in self._questions.values():
            self._ask_again(other, now)

    def _doubt(self, datagram: bytes, message: Message, now: float) -> str | None:
        """Why the message is not believed to be the server's, and fresh; None if it is."""
        credentials = self.credentials
        if credentials is None:
            return None
        question = self._questions.get(message.transaction)
        doubt = credentials.doubt(datagram, message, now)
        if doubt is None and message.type is MessageType.INVALIDATE:
            doubt = credentials.doubt_fresh(message.auth)
        if doubt is not None and question is not None and not message.result.ok:
            self.disbelieved = message.result
        return doubt

    def _is_about_credentials(self, question: Question, message: Message, now: float) -> bool:
        """Whether the answer says how to ask better, which is done at once."""
        credentials = self.credentials
        if credentials is None:
            return False
        if credentials.learn(message, question.asked_at, now):
            self._ask_again(question, now)
            return True
        if credentials.is_asked_for_new_key(message):
            self.change_key(now)
        if message.result is Result.KEY_REQUIRED and credentials.key is None and question.kind is not Kind.AGREE:
            return credentials.agreeing or self.change_key(now)
        return False

    def _agreement_refused(self, question: Question, message: Message, now: float) -> None:
        self._agreement_ended(question)
        for other in tuple(self._questions.values()):
            self._ask_again(other, now)

    def _agreement_ended(self, question: Question) -> None:
        self._close(question)
        if self.credentials is not None:
            self.credentials.give_up_offer()

    def _give_back(self, message: Message, now: float) -> None:
        """A WANT was granted that nobody waits for any more."""
        del self._given_up[message.transaction]
        for info in message.leases:
            if info.id and not self._holdings.is_over(info) and info.id not in self._holdings:
                holding = Holding()
                holding.trigger(Trigger.LEARNED)
                self._holdings.hold(holding, info, now, now)
                self.release(info.id, now)

    # ANNOUNCE

    def _announced(self, message: Message, now: float) -> None:
        """A server has started, or somebody says so. What that means for the leases only an answer can tell."""
        last = self.epoch_state
        if last is None or not went_back(last, message.epoch, now):
            self.counters["announce-no-news"] += 1
            return
        if now < self._heed_at:
            self.counters["announce-above-rate"] += 1
            return
        self._heed_at = now + ANNOUNCE_INTERVAL
        at = now + ANNOUNCE_SPREAD * self._draw() / 2**64
        self._holdings.ask_by(at)

    # INVALIDATE

    def _invalidated(self, message: Message, now: float) -> None:
        self._acknowledge(message.transaction, now)
        if message.transaction in self._obeyed:
            return
        remember(self._obeyed, message.transaction)
        reason = message.reason or "the server took the lease back"
        for info in message.leases:
            self._holdings.invalidated(info, message.result, reason)

    def _acknowledge(
        self, transaction: int, now: float, result: Result = Result.SUCCESS, unknown: tuple[int, ...] = ()
    ) -> None:
        ack = Message(MessageType.ACK, transaction, result, host_id=self.host_id, unknown=unknown)
        self._send(encode(ack), now)

    def _close(self, question: Question) -> None:
        del self._questions[question.transaction]
        for holding in question.about:
            if holding.question is question:
                holding.question = None
