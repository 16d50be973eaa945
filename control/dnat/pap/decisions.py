"""What becomes of an admitted question: who gets which ports, what is renewed, released, or agreed on.

Pure. Whatever has to be durable before the answer leaves is written into the answer.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from dnat.leases.errors import LeaseRefused, Refusal
from dnat.leases.records import LeaseRecord
from dnat.leases.table import LeaseTable
from dnat.pap.answers import Answer
from dnat.pap.auth import Key
from dnat.pap.backoff import Draw
from dnat.pap.guard import Agreed, Guard
from dnat.pap.messages import PERMANENT, LeaseInfo, Message, MessageType, Result, Want
from dnat.pap.policy import Policy

DRAIN_RETRY = 60
"""Seconds after which a host may ask a server again that grants nothing for the time being."""
LEARN_RETRY = 2
"""Seconds after which a host may ask again while others register what they hold."""
CLOCK_STEP = 1e-6
"""Seconds, above the resolution of a wall clock in a float: 3600 s just granted are not 3599."""

_RESULTS = {
    Refusal.OUTSIDE_POOL: Result.OUTSIDE_POOL,
    Refusal.EXHAUSTED: Result.POOL_EXHAUSTED,
    Refusal.TAKEN: Result.PORT_TAKEN,
    Refusal.HELD: Result.PORT_HELD,
}


class Decisions:
    """The lease table's door: policy, quotas and reservations stand here."""

    def __init__(self, table: LeaseTable, draw: Draw, policy: Policy, guard: Guard | None) -> None:
        self.table = table
        self.policy = policy
        self.draining = False
        """Nothing new is granted; what is leased stays so, and is renewed."""
        self.learning_until = 0.0
        """Until then hosts register what they hold, and nothing else is granted."""
        self._draw = draw
        self._guard = guard

    def decide(self, message: Message, answer: Answer, key: Key | None, host: IPv4Address, now: float) -> str:
        """Act on a question and fill in its answer; returns what kind of question it was."""
        if message.type is MessageType.RELEASE:
            if message.leases and all(info.id for info in message.leases):
                for info in message.leases:
                    answer.changes += self.table.release(info.id, answer.host_id, now)
            else:
                answer.result, answer.reason = Result.MALFORMED, "a RELEASE names leases"
            return "release"
        asked = (message.want is not None) + bool(message.leases) + message.resume + (message.key_share is not None)
        if asked != 1 or not all(info.id for info in message.leases):
            answer.result, answer.reason = Result.MALFORMED, "a REQUEST is one of WANT, LEASE, RESUME and KEY-SHARE"
            return "request"
        if message.key_share is not None:
            self._agree(message, answer, key, host, now)
            return "agree"
        answer.changes += self.table.move(answer.host_id, host)
        if message.want is not None:
            self._want(message.want, answer, key, host, now)
            return "want"
        if message.resume:
            asked_leases = tuple(record_info(record) for record in self.table.of_host(answer.host_id))
            self._renew(asked_leases, answer, now, keep_longer=True)
            answer.leases = tuple(info for info in answer.leases if info.lifetime)
            return "resume"
        self._renew(message.leases, answer, now)
        return "renew"

    def _agree(self, message: Message, answer: Answer, key: Key | None, host: IPv4Address, now: float) -> None:
        if self._guard is None:
            answer.result, answer.reason = Result.NOT_AUTHORIZED, "this server has no keys"
            return
        outcome = self._guard.agree(message, key, host, now)
        if isinstance(outcome, Agreed):
            answer.key, answer.key_share = outcome.key, outcome.share
            answer.key_changes += outcome.changes
        else:
            answer.result, answer.reason, answer.retry_after = outcome.result, outcome.reason, outcome.retry_after

    def _renew(self, asked: tuple[LeaseInfo, ...], answer: Answer, now: float, keep_longer: bool = False) -> None:
        """Renew what can be; the others are listed with lifetime 0."""
        infos = {}
        for info in asked:
            before = self.table.get(info.id)
            lifetime = float(self.policy.granted_lifetime(info.lifetime, before.ports if before else None))
            if keep_longer and before is not None:
                lifetime = max(lifetime, before.expires_at - now)
            record, changes = self.table.renew(info.id, answer.host_id, lifetime, now)
            answer.changes += changes
            infos[info.id] = replace(info, lifetime=0) if record is None else record_info(record, now)
        answer.leases = tuple(infos.values())

    def _names(self, host_id: bytes, key: Key | None, host: IPv4Address) -> frozenset[str]:
        """What reservations may call a host. A name counts only where the key vouches for it."""
        record = self._guard.keyring.get(key.id) if key is not None and self._guard is not None else None
        return frozenset({str(host), host_id.hex()} | ({record.name} if record is not None else set()))

    def _want(self, want: Want, answer: Answer, key: Key | None, host: IPv4Address, now: float) -> None:
        record = self.table.of_transaction(answer.host_id, answer.transaction)
        lifetime = self.policy.granted_lifetime(want.lifetime, want.ports)
        if record is None and (same := self._holds_already(answer.host_id, want)) is not None:
            # A host that forgot what it holds, or that thinks we did, asks for its own ports by number.
            record, changes = self.table.renew(same.id, answer.host_id, lifetime, now)
            answer.changes += changes
        if record is None and want.ports is not None:
            names = self._names(answer.host_id, key, host)
            if not self.policy.may_lease(want.ports, names):
                answer.result, answer.reason = Result.NOT_AUTHORIZED, "these ports are reserved for other hosts"
                return
        if record is None and self.draining:
            answer.result, answer.retry_after = Result.SHUTTING_DOWN, DRAIN_RETRY
            return
        if record is None and now < self.learning_until and (want.first is None or want.address is None):
            # Somebody may still hold what would be granted here.
            answer.result, answer.retry_after = Result.BUSY, LEARN_RETRY
            answer.reason = "the leases were lost: hosts register what they hold"
            return
        try:
            if record is None:
                record = self._grant(want, lifetime, answer, host, now)
        except LeaseRefused as refused:
            answer.result = _RESULTS[refused.refusal]
            answer.reason, answer.retry_after = str(refused), refused.retry_after
        except _OverQuota as over:
            answer.result, answer.reason = Result.QUOTA_EXCEEDED, str(over)
        except _TooManyWantsError:
            answer.result, answer.retry_after = Result.BUSY, 1
        else:
            answer.result = Result.FEWER if len(record.ports) < want.count else Result.SUCCESS
            answer.leases = (record_info(record, now),)

    def _grant(self, want: Want, lifetime: int, answer: Answer, host: IPv4Address, now: float) -> LeaseRecord:
        held = self.table.of_host(answer.host_id)
        used = max(sum(len(record.ports) for record in each) for each in (held, self.table.at(host)))
        room = self.policy.max_ports_per_host - used
        if len(held) >= self.policy.max_leases_per_host:
            raise _OverQuota(f"at most {self.policy.max_leases_per_host} leases per host")
        if room < 1 or (want.all_or_nothing and want.count > room):
            raise _OverQuota(f"at most {self.policy.max_ports_per_host} ports per host")
        if self._guard is not None and not self._guard.admit_lease(now):
            raise _TooManyWantsError
        want = replace(want, count=min(want.count, room), lifetime=lifetime)
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


class _TooManyWantsError(Exception):
    """There is no time for one more lease now."""


class _OverQuota(Exception):
    """The host has as much as the policy allows."""


def record_info(record: LeaseRecord, now: float | None = None) -> LeaseInfo:
    """The lease as a message speaks of it, with the lifetime that is left, rounded down; 0 without a time."""
    # A clock behind that of the grant (before a reboot, or another server's) sees more than PERMANENT.
    left = 0 if now is None else min(max(0, int(record.expires_at - now + CLOCK_STEP)), PERMANENT)
    return LeaseInfo(record.id, record.address, record.ports, record.protocol, record.purpose, left)
