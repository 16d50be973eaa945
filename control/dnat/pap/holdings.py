"""The leases that an agent has, by identifier, and what becomes of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from dnat.pap.backoff import Draw, jitter
from dnat.pap.events import Event, Lost, Released
from dnat.pap.memory import names, remember
from dnat.pap.messages import LeaseInfo, Message, Result
from dnat.pap.questions import Holding
from dnat.pap.states import State, Trigger
from dnat.types import Lease

DEFER = 60.0
"""Seconds until a renewal that the server could not serve is asked again, at most."""
MAX_RENEWAL_WAIT = 43200.0
"""Seconds: even a lease that does not expire is asked for twice a day, lest a lost store go unnoticed."""


class Holdings:
    """All that are held, renewed, regained or being released, and those that have ended lately."""

    def __init__(self, draw: Draw, tell: Callable[[Event], None]) -> None:
        """``tell`` is given Lost and Released."""
        self._draw = draw
        self._tell = tell
        self._by_id: dict[int, Holding] = {}
        self._ended: OrderedDict[int, None] = OrderedDict()

    def __iter__(self) -> Iterator[Holding]:
        return iter(tuple(self._by_id.values()))

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._by_id

    def get(self, lease_id: int) -> Holding | None:
        return self._by_id.get(lease_id)

    def is_over(self, info: LeaseInfo) -> bool:
        """Whether what the server grants here has ended meanwhile."""
        return not info.lifetime or info.id in self._ended

    @property
    def leases(self) -> tuple[Lease, ...]:
        """Those whose ports may be used."""
        return tuple(each.lease for each in self if each.lease and each.active)

    @property
    def next_deadline(self) -> float | None:
        """When one expires or is to be asked for."""
        times = []
        for holding in self:
            if holding.lease is not None and holding.active:
                times.append(holding.lease.expires_at)
                if holding.next_at is not None:
                    times.append(holding.next_at)
        return min(times, default=None)

    def due(self, now: float) -> list[Holding]:
        """Those to ask for now."""
        return [each for each in self if each.next_at is not None and each.next_at <= now]

    # What changes

    def adopt(self, lease: Lease, now: float) -> None:
        """Go on with a lease that was saved, and ask for it at once."""
        holding = Holding(lease=lease, since=now, next_at=now)
        holding.trigger(Trigger.LEARNED)
        self._by_id[lease.id] = holding

    def hold(self, holding: Holding, info: LeaseInfo, asked_at: float, since: float) -> Lease:
        """Note what the server granted. The lifetime counts from the question, to be on the safe side."""
        lease = Lease(info.id, info.address, info.ports, info.protocol, info.purpose, asked_at + info.lifetime)
        holding.lease = lease
        holding.since = since
        holding.question = None
        holding.deferred = False
        holding.next_at = asked_at + min(info.lifetime / 2, MAX_RENEWAL_WAIT) * jitter(self._draw)
        self._by_id[info.id] = holding
        return lease

    def defer(self, holding: Holding, lease: Lease, message: Message, now: float) -> None:
        """Ask again later, but several times before the lease expires."""
        wait = min(message.retry_after or DEFER, DEFER, (lease.expires_at - now) / 4)
        holding.next_at = now + max(1.0, wait)
        holding.deferred = True

    def hurry(self, now: float) -> None:
        """Ask at once what was put off."""
        for holding in self:
            if holding.deferred and holding.next_at is not None:
                holding.next_at = now

    def ask_by(self, at: float) -> None:
        """Ask for all that are held, no later than then."""
        for holding in self:
            if holding.state is State.HELD and holding.next_at is not None:
                holding.next_at = min(holding.next_at, at)
            elif holding.state is State.RENEWING and holding.question is not None:
                holding.question.hurry(at)

    def expire(self, now: float) -> None:
        """Lose those that nobody renewed in time."""
        for holding in self:
            if holding.lease is not None and holding.active and holding.lease.expires_at <= now:
                self.lose(holding, Trigger.EXPIRED, None, "expired before the server renewed it")

    def invalidated(self, info: LeaseInfo, result: Result, reason: str) -> None:
        """The server takes back what is named."""
        if info.id:
            remember(self._ended, info.id)
        for holding in self:
            if holding.lease is None or not names(info, holding.lease):
                continue
            if holding.active:
                self.lose(holding, Trigger.INVALIDATED, result, reason)
            else:
                self.end(holding, Trigger.INVALIDATED)
                self._tell(Released(holding.lease.id))

    def forget(self, lease_id: int, *, ended: bool) -> None:
        """The identifier stands for the lease no more; ``ended``: what is still under way about it revives nothing."""
        del self._by_id[lease_id]
        if ended:
            remember(self._ended, lease_id)

    def lose(self, holding: Holding, trigger: Trigger, result: Result | None, reason: str) -> None:
        """The ports must not be used any more."""
        if holding.lease is not None:
            self.end(holding, trigger)
            self._tell(Lost(holding.lease, result, reason))

    def end(self, holding: Holding, trigger: Trigger) -> None:
        """It is over, whether a lease came of it or not."""
        holding.trigger(trigger)
        holding.next_at = None
        holding.question = None
        if holding.lease is not None:
            # The server may have renewed one that expired here, and says so when asked.
            self.forget(holding.lease.id, ended=trigger is not Trigger.EXPIRED)
