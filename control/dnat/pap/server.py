"""The server: decides about every question of every host, and keeps after hosts whose leases it takes back.

Pure: datagrams, offences and the time go in, `Step`s come out. The caller takes `steps`, makes their changes
durable in order, then sends their datagrams, and says `committed` for every step; or `failed` for every step
that it took and could not commit, and then `reset_table`. All times are wall-clock seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from dnat.errors import UsageError
from dnat.leases.errors import LeaseRefused, Refusal
from dnat.leases.records import Change, LeaseRecord
from dnat.leases.table import LeaseTable
from dnat.pap.answers import Answer, AnswerCache, Destination, Step
from dnat.pap.backoff import Draw
from dnat.pap.codec import CodecError, decode, encode
from dnat.pap.invalidations import Invalidation, Invalidations
from dnat.pap.messages import MAX_LEASES, LeaseInfo, Message, MessageType, Result, Want
from dnat.types import PortRange, Protocol, Purpose

CALM = 1.0
"""Seconds after a failure of the store before the server lets leases expire again."""
CLOCK_STEP = 1e-6
"""Seconds, above the resolution of a wall clock in a float: 3600 s just granted are not 3599."""
MAX_EPOCH = 0xFFFFFFFF

_ANSWERS = {MessageType.REQUEST: MessageType.RESPONSE, MessageType.RELEASE: MessageType.ACK}

_RESULTS = {
    Refusal.OUTSIDE_POOL: Result.OUTSIDE_POOL,
    Refusal.EXHAUSTED: Result.POOL_EXHAUSTED,
    Refusal.TAKEN: Result.PORT_TAKEN,
    Refusal.HELD: Result.PORT_HELD,
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What a server grants, and to whom. Raises ValueError when it contradicts itself."""

    networks: tuple[IPv4Network, ...]
    """The LAN; whoever asks from elsewhere is not answered."""
    lifetime: int = 3600
    """Seconds, for hosts that leave it to the server."""
    min_lifetime: int = 60
    max_lifetime: int = 86400
    max_leases_per_host: int = 32
    """At most 32: they have to fit one message."""
    max_ports_per_host: int = 2048

    def __post_init__(self) -> None:
        if not 0 < self.min_lifetime <= self.lifetime <= self.max_lifetime:
            raise ValueError("lifetimes must keep 0 < min_lifetime <= lifetime <= max_lifetime")
        if not 1 <= self.max_leases_per_host <= MAX_LEASES:
            raise ValueError(f"max_leases_per_host must be 1 to {MAX_LEASES}")
        if self.max_ports_per_host < 1:
            raise ValueError("max_ports_per_host must be at least 1")

    def granted_lifetime(self, wanted: int) -> int:
        """Seconds granted to who wants so many; 0 wants the usual."""
        return min(max(wanted or self.lifetime, self.min_lifetime), self.max_lifetime)

    def serves(self, host: IPv4Address) -> bool:
        return any(host in network for network in self.networks)


class Server:
    """PAP for every host of a LAN."""

    def __init__(self, table: LeaseTable, draw: Draw, policy: Policy, epoch_start: float) -> None:
        """``epoch_start``: when the lease state began, stored beside it and lost with it."""
        self.table = table
        self.policy = policy
        self.counters: Counter[str] = Counter()
        """Outcomes (``want-success``, ``renew-store-failed``) and drops (``off-lan``), by name."""
        self._draw = draw
        self._epoch_start = epoch_start
        self._answers = AnswerCache()
        self._invalidations = Invalidations(draw)
        self._queue: list[Step] = []
        self._uncommitted: dict[Step, tuple[Answer | Invalidation, ...]] = {}
        self._calm_until = 0.0

    # What goes in

    def receive(self, datagram: bytes, source: Destination, now: float) -> None:
        """Take in a datagram. Never raises, whatever is in it and whoever sent it; see `counters`."""
        if not self.policy.serves(source[0]):
            self.counters["off-lan"] += 1
            return
        try:
            message = decode(datagram)
        except CodecError as error:
            self._reject(error, source, now)
            return
        if message.type is MessageType.ACK:
            if not self._invalidations.acknowledged(message.transaction, source[0]):
                self.counters["no-open-invalidation"] += 1
        elif message.type in _ANSWERS:
            self._asked(message, source, now)
        else:
            self.counters["unexpected-type"] += 1

    def timeout(self, now: float) -> None:
        """End leases and holds that are due, repeat INVALIDATEs. Harmless if nothing is due."""
        self._expire(now)
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
                told.setdefault((record.host_id, record.host), []).append(_info(record))
                self.counters[f"invalidate-{reason.label}"] += 1
        invalidations: list[Invalidation] = []
        for (host_id, host), infos in told.items():
            for start in range(0, len(infos), MAX_LEASES):
                batch = tuple(infos[start : start + MAX_LEASES])
                invalidations.append(self._invalidations.new(host, host_id, batch, reason, text))
        if invalidations:
            octets = [(self._invalidation_octets(each, now), each.destination) for each in invalidations]
            self._put(tuple(changes), octets, tuple(invalidations), now)

    def offence(self, host: IPv4Address, address: IPv4Address, port: int, protocol: Protocol, now: float) -> None:
        """A router saw the host use a port that is not its own: say so, as often as the rate limit allows."""
        if not self.policy.serves(host) or not 1 <= port <= 65535:
            return
        self.counters["offence"] += 1
        if not self._invalidations.may_warn(host, now):
            self.counters["offence-not-told"] += 1
            return
        host_id = None
        for record in self.table:
            if record.host == host:
                host_id = record.host_id
                same_protocol = record.protocol.overlaps(protocol)
                if record.address == address and port in record.ports and same_protocol:
                    self.counters["offence-stale"] += 1
                    return
        named = LeaseInfo(0, address, PortRange(port, port), protocol, Purpose.EXPLICIT, 0)
        warning = self._invalidations.new(host, host_id, (named,), Result.NOT_OWNER, None)
        self._put((), [(self._invalidation_octets(warning, now), warning.destination)], (warning,), now)

    # What comes out

    @property
    def next_deadline(self) -> float | None:
        """When `timeout` has to be called; None if nothing is pending."""
        ends = self.table.next_deadline()
        times = [self._invalidations.next_deadline, None if ends is None else max(ends, self._calm_until)]
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
                each.pending = False

    def failed(self, step: Step, now: float) -> None:
        """The step's changes could not be made durable: its questions are answered STORE_FAILED instead."""
        for (_, destination), each in zip(step.datagrams, self._uncommitted.pop(step, ()), strict=False):
            if isinstance(each, Answer):
                self._answers.remove(each)
                self.counters["store-failed"] += 1
                answer = Answer(each.question, each.host_id, each.transaction, Result.STORE_FAILED)
                self._queue.append(Step((), ((self._octets(answer, now), destination),)))
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
        self.table = table

    # Questions

    def _asked(self, message: Message, source: Destination, now: float) -> None:
        if message.host_id is None:
            error = CodecError(Result.MALFORMED, "no HOST-ID", transaction=message.transaction, type=message.type)
            self._reject(error, source, now)
            return
        known = self._answers.get(message.host_id, message.transaction, now)
        if known is not None:
            if known.pending:
                self.counters["repeat-before-commit"] += 1
            else:
                self.counters["repeat"] += 1
                self._queue.append(Step((), ((self._octets(known, now), source),)))
            return
        self._expire(now)
        answer = Answer(message.type, message.host_id, message.transaction)
        kind = self._decide(message, answer, source[0], now)
        self.counters[f"{kind}-{answer.result.label}"] += 1
        changes, answer.changes = tuple(answer.changes), []
        self._answers.put(answer, now)
        self._put(changes, [(self._octets(answer, now), source)], (answer,), now)

    def _decide(self, message: Message, answer: Answer, host: IPv4Address, now: float) -> str:
        """Act on a question and fill in its answer; returns what kind of question it was."""
        if message.type is MessageType.RELEASE:
            if message.leases and all(info.id for info in message.leases):
                for info in message.leases:
                    answer.changes += self.table.release(info.id, answer.host_id, now)
            else:
                answer.result, answer.reason = Result.MALFORMED, "a RELEASE names leases"
            return "release"
        asked = (message.want is not None) + bool(message.leases) + message.resume
        if asked != 1 or not all(info.id for info in message.leases):
            answer.result, answer.reason = Result.MALFORMED, "a REQUEST is one of WANT, LEASE and RESUME"
            return "request"
        answer.changes += self.table.move(answer.host_id, host)
        if message.want is not None:
            self._decide_want(message.want, answer, host, now)
            return "want"
        if message.resume:
            asked_leases = tuple(_info(record) for record in self.table.of_host(answer.host_id))
            self._decide_renewal(asked_leases, answer, now, keep_longer=True)
            answer.leases = tuple(info for info in answer.leases if info.lifetime)
            return "resume"
        self._decide_renewal(message.leases, answer, now)
        return "renew"

    def _decide_renewal(
        self, asked: tuple[LeaseInfo, ...], answer: Answer, now: float, keep_longer: bool = False
    ) -> None:
        """Renew what can be; the others are listed with lifetime 0."""
        infos = {}
        for info in asked:
            lifetime = float(self.policy.granted_lifetime(info.lifetime))
            before = self.table.get(info.id)
            if keep_longer and before is not None:
                lifetime = max(lifetime, before.expires_at - now)
            record, changes = self.table.renew(info.id, answer.host_id, lifetime, now)
            answer.changes += changes
            infos[info.id] = replace(info, lifetime=0) if record is None else _info(record, now)
        answer.leases = tuple(infos.values())

    def _decide_want(self, want: Want, answer: Answer, host: IPv4Address, now: float) -> None:
        record = self.table.of_transaction(answer.host_id, answer.transaction)
        lifetime = self.policy.granted_lifetime(want.lifetime)
        if record is None and (same := self._holds_already(answer.host_id, want)) is not None:
            # A host that forgot what it holds, or that thinks we did, asks for its own ports by number.
            record, changes = self.table.renew(same.id, answer.host_id, lifetime, now)
            answer.changes += changes
        try:
            if record is None:
                record = self._grant(replace(want, lifetime=lifetime), answer, host, now)
        except LeaseRefused as refused:
            answer.result = _RESULTS[refused.refusal]
            answer.reason, answer.retry_after = str(refused), refused.retry_after
        except _OverQuota as over:
            answer.result, answer.reason = Result.QUOTA_EXCEEDED, str(over)
        else:
            answer.result = Result.FEWER if len(record.ports) < want.count else Result.SUCCESS
            answer.leases = (_info(record, now),)
            self._invalidations.forget_warnings(host, record)

    def _grant(self, want: Want, answer: Answer, host: IPv4Address, now: float) -> LeaseRecord:
        held = self.table.of_host(answer.host_id)
        room = self.policy.max_ports_per_host - sum(len(record.ports) for record in held)
        if len(held) >= self.policy.max_leases_per_host:
            raise _OverQuota(f"at most {self.policy.max_leases_per_host} leases per host")
        if room < 1 or (want.all_or_nothing and want.count > room):
            raise _OverQuota(f"at most {self.policy.max_ports_per_host} ports per host")
        want = replace(want, count=min(want.count, room))
        record, changes = self.table.grant(answer.host_id, host, want, answer.transaction, now, choose=self._choose)
        answer.changes += changes
        return record

    def _holds_already(self, host_id: bytes, want: Want) -> LeaseRecord | None:
        for record in self.table.of_host(host_id) if want.first is not None else ():
            same_use = record.protocol is want.protocol and record.purpose is want.purpose
            if record.ports == want.ports and same_use and want.address in (None, record.address):
                return record
        return None

    def _choose(self, n: int) -> int:
        return self._draw() % n

    # Refusals of what is no question

    def _reject(self, error: CodecError, source: Destination, now: float) -> None:
        self.counters[error.result.label] += 1
        if error.transaction is not None and error.type in _ANSWERS:
            message = Message(
                _ANSWERS[MessageType(error.type)],
                error.transaction,
                error.result,
                self._epoch(now),
                error.host_id,
                reason=str(error),
                unknown=error.unknown,
            )
            self._queue.append(Step((), ((encode(message), source),)))

    # Steps and octets

    def _expire(self, now: float) -> None:
        if now >= self._calm_until and (changes := self.table.expire(now)):
            self._put(changes, [], (), now)

    def _put(
        self,
        changes: tuple[Change, ...],
        datagrams: list[tuple[bytes, Destination]],
        waiting: tuple[Answer | Invalidation, ...],
        now: float,
    ) -> None:
        step = Step(changes, tuple(datagrams))
        self._queue.append(step)
        self._uncommitted[step] = waiting
        if changes:
            for each in waiting:
                if isinstance(each, Answer):
                    each.pending = True
        else:
            self.committed(step, now)

    def _send_invalidation(self, invalidation: Invalidation, now: float) -> None:
        octets = self._invalidation_octets(invalidation, now)
        self._queue.append(Step((), ((octets, invalidation.destination),)))

    def _invalidation_octets(self, invalidation: Invalidation, now: float) -> bytes:
        return encode(
            Message(
                MessageType.INVALIDATE,
                invalidation.transaction,
                invalidation.reason,
                self._epoch(now),
                invalidation.host_id,
                leases=invalidation.leases,
                reason=invalidation.text,
            )
        )

    def _octets(self, answer: Answer, now: float) -> bytes:
        leases = []
        for info in answer.leases:
            record = self.table.get(info.id)
            ours = record is not None and record.host_id == answer.host_id
            leases.append(_info(record, now) if record is not None and ours else replace(info, lifetime=0))
        return encode(
            Message(
                _ANSWERS[answer.question],
                answer.transaction,
                answer.result,
                self._epoch(now),
                answer.host_id,
                leases=tuple(leases),
                reason=answer.reason,
                retry_after=answer.retry_after,
            )
        )

    def _epoch(self, now: float) -> int:
        return min(max(0, int(now - self._epoch_start)), MAX_EPOCH)


class _OverQuota(Exception):
    """The host has as much as the policy allows."""


def _info(record: LeaseRecord, now: float | None = None) -> LeaseInfo:
    """The lease as a message speaks of it, with the lifetime that is left, rounded down; 0 without a time."""
    left = 0 if now is None else max(0, int(record.expires_at - now + CLOCK_STEP))
    return LeaseInfo(record.id, record.address, record.ports, record.protocol, record.purpose, left)
