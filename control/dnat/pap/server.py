"""The server: decides about every question of every host, and keeps after hosts whose leases it takes back.

Pure: datagrams, offences and the time go in, `Step`s come out. The caller takes `steps`, makes their changes
durable in order, then sends their datagrams, and says `committed` for every step; or `failed` for every step
that it took and could not commit, and then `reset_table`. All times are wall-clock seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address

from dnat.errors import UsageError
from dnat.leases.records import Change
from dnat.leases.table import LeaseTable
from dnat.pap.announcing import Announcing
from dnat.pap.answers import Answer, AnswerCache, Asked, Destination, Step
from dnat.pap.auth import Key
from dnat.pap.backoff import Draw
from dnat.pap.codec import CodecError, decode, encode
from dnat.pap.decisions import Decisions, record_info
from dnat.pap.guard import Guard, Passed, Refused
from dnat.pap.invalidations import Invalidation, Invalidations
from dnat.pap.keyring import KeyChange
from dnat.pap.messages import MAX_LEASES, LeaseInfo, Message, MessageType, Result
from dnat.pap.policy import Policy
from dnat.types import PortRange, Protocol, Purpose

CALM = 1.0
"""Seconds after a failure of the store before the server lets leases expire again."""
MAX_EPOCH = 0xFFFFFFFF
MAX_TEXT = 48
"""Characters of an operator's words: they fit beside 32 leases and AUTH in any script."""

_ANSWERS = {MessageType.REQUEST: MessageType.RESPONSE, MessageType.RELEASE: MessageType.ACK}


class Server:
    """PAP for every host of a LAN."""

    def __init__(
        self, table: LeaseTable, draw: Draw, policy: Policy, epoch_start: float, guard: Guard | None = None
    ) -> None:
        """``epoch_start``: when the lease state began, stored beside it and lost with it; without a guard
        everybody on the LAN is trusted.
        """
        self.decisions = Decisions(table, draw, policy, guard)
        self.guard = guard
        self.counters: Counter[str] = Counter()
        """Outcomes (``want-success``, ``renew-store-failed``) and drops (``off-lan``), by name."""
        self._draw = draw
        self._epoch_start = epoch_start
        self._answers = AnswerCache()
        self._invalidations = Invalidations(draw)
        self._queue: list[Step] = []
        self._uncommitted: dict[Step, tuple[Answer | Invalidation, ...]] = {}
        self._calm_until = 0.0
        self._announcing = Announcing()

    @property
    def table(self) -> LeaseTable:
        """Who holds what."""
        return self.decisions.table

    def begin(self, now: float, broadcast: Iterable[IPv4Address] = (), learn: float = 0.0) -> None:
        """Tell the LANs with these broadcast addresses that the server is there.

        ``learn``: seconds for which hosts register what they hold, because the lease state was lost, before
        anything else is granted.
        """
        self._announcing = Announcing(tuple(broadcast), now)
        self.decisions.learning_until = now + learn

    # What goes in

    def receive(self, datagram: bytes, source: Destination, now: float) -> None:
        """Take in a datagram. Never raises, whatever is in it and whoever sent it; see `counters`."""
        if not self.decisions.policy.serves(source[0]):
            self.counters["off-lan"] += 1
            return
        if self.guard is not None and not self.guard.is_worth_reading(datagram, source, now):
            self.counters["unverified-above-rate"] += 1
            return
        try:
            message = decode(datagram)
        except CodecError as error:
            self._reject(error, datagram, source, now)
            return
        if message.type is MessageType.ACK:
            self._acknowledged(datagram, message, source[0])
        elif message.type in _ANSWERS:
            self._asked(datagram, message, source, now)
        else:
            self.counters["unexpected-type"] += 1

    def timeout(self, now: float) -> None:
        """End leases and holds that are due, repeat INVALIDATEs. Harmless if nothing is due."""
        self._expire(now)
        if self._announcing.is_due(now):
            octets = encode(Message(MessageType.ANNOUNCE, self._draw(), epoch=self._epoch(now)))
            self._queue.append(Step((), tuple((octets, to) for to in self._announcing.destinations)))
        for invalidation in self._invalidations.due(now):
            self._send_invalidation(invalidation, now)

    def invalidate(self, lease_ids: Iterable[int], reason: Result, now: float, text: str | None = None) -> None:
        """Take leases back and tell their holders why; identifiers that are not leased are skipped."""
        told: dict[tuple[bytes, IPv4Address], list[LeaseInfo]] = {}
        changes: list[Change] = []
        for lease_id in lease_ids:
            record, made = self.table.revoke(lease_id, now)
            changes += made
            if record is not None:
                told.setdefault((record.host_id, record.host), []).append(record_info(record))
                self.counters[f"invalidate-{reason.label}"] += 1
        invalidations: list[Invalidation] = []
        for (host_id, host), infos in told.items():
            for start in range(0, len(infos), MAX_LEASES):
                batch = tuple(infos[start : start + MAX_LEASES])
                invalidations.append(self._invalidations.new(host, host_id, batch, reason, text))
        if invalidations or changes:
            octets = [(self._invalidation_octets(each, now), each.destination) for each in invalidations]
            self._put(tuple(changes), octets, tuple(invalidations), now)

    def offence(self, host: IPv4Address, address: IPv4Address, port: int, protocol: Protocol, now: float) -> None:
        """A router saw the host use a port that is not its own: say so, as often as the rate limit allows."""
        if not self.decisions.policy.serves(host) or not 1 <= port <= 65535:
            return
        self.counters["offence"] += 1
        if now < self.decisions.learning_until:
            self.counters["offence-while-learning"] += 1
            return
        if not self._invalidations.may_warn(host, now):
            self.counters["offence-not-told"] += 1
            return
        host_id = None
        for record in self.table.at(host):
            host_id = record.host_id
            same_protocol = record.protocol.overlaps(protocol)
            if record.address == address and port in record.ports and same_protocol:
                self.counters["offence-stale"] += 1
                return
        named = LeaseInfo(0, address, PortRange(port, port), protocol, Purpose.EXPLICIT, 0)
        warning = self._invalidations.new(host, host_id, (named,), Result.NOT_OWNER, None)
        self._put((), [(self._invalidation_octets(warning, now), warning.destination)], (warning,), now)

    def drain(self, addresses: frozenset[IPv4Address], now: float) -> int:
        """Grant nothing more of these external addresses, and take back what is leased of them; returns how many."""
        self.table.drained = addresses
        ids = [record.id for record in self.table if record.address in addresses]
        self.invalidate(ids, Result.ADDRESS_CHANGED, now, "the address is being taken out of service")
        return len(ids)

    def invalidate_strays(self, now: float) -> int:
        """Take back what the pool, as it is now, has no longer; returns how many."""
        ids = [record.id for record in self.table.strays()]
        self.invalidate(ids, Result.ADDRESS_CHANGED, now, "the pool has changed")
        return len(ids)

    def change_keys(self, changes: tuple[KeyChange, ...], now: float) -> None:
        """An operator changed keys of the guard's keyring: have that made durable."""
        self._put((), [], (), now, changes)

    # What comes out

    @property
    def next_deadline(self) -> float | None:
        """When `timeout` has to be called; None if nothing is pending."""
        ends = self.table.next_deadline()
        keys = self.guard.next_deadline if self.guard else None
        times = [self._invalidations.next_deadline, self._announcing.next_at]
        times += [None if each is None else max(each, self._calm_until) for each in (ends, keys)]
        return min((each for each in times if each is not None), default=None)

    def steps(self) -> list[Step]:
        """What to commit and send, in order; each is handed out once."""
        result, self._queue = self._queue, []
        return result

    def committed(self, step: Step, now: float) -> None:
        """The step's changes are durable and its datagrams have left: repeats may be answered from now on."""
        for each in self._uncommitted.pop(step, ()):
            if isinstance(each, Invalidation):
                self._invalidations.start(each, now)
            else:
                each.pending, each.asked = False, None

    def failed(self, step: Step, now: float) -> None:
        """The step's changes could not be made durable: its questions are answered STORE_FAILED instead."""
        for (_, destination), each in zip(step.datagrams, self._uncommitted.pop(step, ()), strict=False):
            if isinstance(each, Answer):
                self._answers.remove(each)
                self.counters["store-failed"] += 1
                answer = Answer(each.question, each.host_id, each.transaction, Result.STORE_FAILED)
                octets = self._octets(answer, self.guard.key_of(each.host_id) if self.guard else None, destination, now)
                self._queue.append(Step((), ((octets, destination),)))
        self._calm_until = now + CALM

    def reset_table(self, table: LeaseTable, now: float) -> None:
        """Go on with a table loaded from what is durable, after `failed`.

        Steps not handed out yet rest on the old table and fail, too. Raises UsageError if a step that
        was handed out is neither committed nor failed: the new table cannot know what will become of it.
        """
        queue, self._queue = self._queue, []
        queued = [step for step in queue if step in self._uncommitted]
        if len(self._uncommitted) > len(queued):
            raise UsageError("the lease table was reset while a step was being committed")
        self._queue = [step for step in queue if step not in self._uncommitted]
        for step in queued:
            self.failed(step, now)
        table.drained = self.table.drained
        self.decisions.table = table

    def overtaken(self, steps: Iterable[Step], correct: Callable[[Iterable[Change]], None], now: float) -> None:
        """Another server changed the leases before these steps, and those not handed out yet, were durable.

        ``correct`` is given every change that they would have made, and takes the table back to what is durable. Then
        their questions are decided again; nobody is told of the first attempt.
        """
        queue, self._queue = [*steps, *self._queue], []
        undone = {step for step in queue if step.changes and step in self._uncommitted}
        correct([change for step in queue if step in undone for change in step.changes])
        for step in queue:
            if step not in undone:
                self._queue.append(step)
                continue
            self.counters["decided-again"] += 1
            waiting = self._uncommitted.pop(step)
            invalidations = tuple(each for each in waiting if isinstance(each, Invalidation))
            for each in waiting:
                if isinstance(each, Answer) and each.asked is not None:
                    self._answers.remove(each)
                    self.counters[each.counter] -= 1
                    self._act(each.asked, each.host_id, step.keys, now)
            if invalidations:
                named = [info.id for each in invalidations for info in each.leases]
                changes = [change for lease_id in named for change in self.table.revoke(lease_id, now)[1]]
                self._put(tuple(changes), list(step.datagrams), invalidations, now, step.keys)
            elif not waiting and step.keys:
                self._put((), [], (), now, step.keys)

    # Questions

    def _asked(self, datagram: bytes, message: Message, source: Destination, now: float) -> None:
        if message.host_id is None:
            error = CodecError(Result.MALFORMED, "no HOST-ID", transaction=message.transaction, type=message.type)
            self._reject(error, datagram, source, now)
            return
        peer = self.guard.admit(datagram, message, source, now) if self.guard else Passed()
        if not isinstance(peer, Passed):
            self.counters[peer.counter] += 1
            if isinstance(peer, Refused):
                self._refuse(message, peer, len(datagram), source, now)
            return
        known = self._answers.get(message.host_id, message.transaction, now)
        if known is not None:
            if known.pending:
                self.counters["repeat-before-commit"] += 1
                if peer.changes:
                    self._put((), [], (), now, peer.changes)
            else:
                self.counters["repeat"] += 1
                self._put((), [(self._octets(known, peer.key, source, now), source)], (), now, peer.changes)
            return
        self._expire(now)
        self._act(Asked(message, peer.key, peer.new_key, source), message.host_id, peer.changes, now)

    def _act(self, asked: Asked, host_id: bytes, keys: tuple[KeyChange, ...], now: float) -> None:
        """Decide an admitted question; ``keys``: what has to be durable besides."""
        message, source = asked.message, asked.source
        answer = Answer(message.type, host_id, message.transaction, asked=asked)
        kind = self.decisions.decide(message, answer, asked.key, source[0], now)
        if message.want is not None and answer.leases:
            self._invalidations.forget_warnings(source[0], answer.leases[0])
        answer.counter = f"{kind}-{answer.result.label}"
        self.counters[answer.counter] += 1
        changes, answer.changes = tuple(answer.changes), []
        keys, answer.key_changes = (*keys, *answer.key_changes), []
        self._answers.put(answer, now)
        octets = self._octets(answer, asked.key, source, now, new_key=asked.new_key and answer.key is None)
        self._put(changes, [(octets, source)], (answer,), now, keys)

    # Refusals of what is no question

    def _reject(self, error: CodecError, datagram: bytes, source: Destination, now: float) -> None:
        self.counters[error.result.label] += 1
        if error.transaction is not None and error.type in _ANSWERS:
            if self.guard is not None and not self.guard.may_answer_unread(now):
                self.counters["unverified-above-rate"] += 1
                return
            message = Message(
                _ANSWERS[MessageType(error.type)],
                error.transaction,
                error.result,
                self._epoch(now),
                error.host_id,
                reason=str(error),
                unknown=error.unknown,
            )
            octets = _no_larger(message, 2 * len(datagram))
            if self.guard is not None:
                octets = self.guard.seal(octets, self.guard.key_of_unread(datagram, source[0]), source[0], now)
            self._queue.append(Step((), ((octets, source),)))

    def _refuse(self, question: Message, refused: Refused, length: int, source: Destination, now: float) -> None:
        message = Message(
            _ANSWERS[question.type],
            question.transaction,
            refused.result,
            self._epoch(now),
            question.host_id,
            reason=refused.reason,
            retry_after=refused.retry_after,
            cookie=refused.cookie,
        )
        octets = _no_larger(message, 2 * length)
        if refused.key is not None and self.guard is not None:
            octets = self.guard.seal(octets, refused.key, source[0], now)
        self._queue.append(Step((), ((octets, source),)))

    def _acknowledged(self, datagram: bytes, message: Message, host: IPv4Address) -> None:
        invalidation = self._invalidations.find(message.transaction, host)
        if invalidation is None:
            self.counters["no-open-invalidation"] += 1
            return
        wrong = self.guard.admit_ack(datagram, message, host, invalidation.host_id) if self.guard else None
        if wrong is not None:
            self.counters[wrong] += 1
        else:
            self._invalidations.close(invalidation)

    # Steps and octets

    def _expire(self, now: float) -> None:
        if now < self._calm_until:
            return
        changes = self.table.expire(now)
        keys = self.guard.expire(now) if self.guard else ()
        if changes or keys:
            self._put(changes, [], (), now, keys)

    def _put(
        self,
        changes: tuple[Change, ...],
        datagrams: list[tuple[bytes, Destination]],
        waiting: tuple[Answer | Invalidation, ...],
        now: float,
        keys: tuple[KeyChange, ...] = (),
    ) -> None:
        step = Step(changes, tuple(datagrams), keys)
        self._queue.append(step)
        self._uncommitted[step] = waiting
        if changes or keys:
            for each in waiting:
                if isinstance(each, Answer):
                    each.pending = True
        else:
            self.committed(step, now)

    def _send_invalidation(self, invalidation: Invalidation, now: float) -> None:
        octets = self._invalidation_octets(invalidation, now)
        self._queue.append(Step((), ((octets, invalidation.destination),)))

    def _invalidation_octets(self, invalidation: Invalidation, now: float) -> bytes:
        octets = encode(
            Message(
                MessageType.INVALIDATE,
                invalidation.transaction,
                invalidation.reason,
                self._epoch(now),
                invalidation.host_id,
                leases=invalidation.leases,
                reason=invalidation.text and invalidation.text[:MAX_TEXT],
            )
        )
        if self.guard is None:
            return octets
        return self.guard.seal(octets, self.guard.key_of(invalidation.host_id), invalidation.host, now)

    def _octets(self, answer: Answer, key: Key | None, to: Destination, now: float, *, new_key: bool = False) -> bytes:
        """The datagram of an answer; ``key``: that of the question."""
        leases = []
        for info in answer.leases:
            record = self.table.get(info.id)
            ours = record is not None and record.host_id == answer.host_id
            leases.append(record_info(record, now) if record is not None and ours else replace(info, lifetime=0))
        octets = encode(
            Message(
                _ANSWERS[answer.question],
                answer.transaction,
                answer.result,
                self._epoch(now),
                answer.host_id,
                leases=tuple(leases),
                reason=answer.reason,
                retry_after=answer.retry_after,
                new_key=new_key,
                key_share=answer.key_share,
            )
        )
        return octets if self.guard is None else self.guard.seal(octets, answer.key or key, to[0], now)

    def _epoch(self, now: float) -> int:
        return min(max(0, int(now - self._epoch_start)), MAX_EPOCH)


def _no_larger(message: Message, limit: int) -> bytes:
    """The message, without the words for people where they would make it larger than ``limit`` octets."""
    octets = encode(message)
    return octets if len(octets) <= limit else encode(replace(message, reason=None))
