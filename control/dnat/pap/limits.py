"""Allowances: so many of something a second, and so many at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

MAX_KNOWN = 8192
"""Hosts whose allowance is remembered. The one longest unheard of is forgotten, which gives it a full one."""


@dataclass(frozen=True, slots=True)
class Rate:
    """An allowance."""

    per_second: float
    at_once: float
    """What gathers while nothing is asked."""


class Bucket:
    """What is left of one allowance (a token bucket)."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._left = rate.at_once
        self._at = now

    def has(self, now: float) -> bool:
        """Whether one more is allowed. A clock that goes back adds nothing."""
        self._left = min(self._rate.at_once, self._left + max(0.0, now - self._at) * self._rate.per_second)
        self._at = now
        return self._left >= 1

    def take(self, now: float) -> bool:
        """Whether one more is allowed; if so it is taken."""
        if not self.has(now):
            return False
        self._left -= 1
        return True


class Buckets:
    """The same allowance for each of many."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._known: OrderedDict[Hashable, Bucket] = OrderedDict()

    def take(self, who: Hashable, now: float) -> bool:
        """Whether one more is allowed to ``who``."""
        bucket = self._known.get(who)
        if bucket is None:
            bucket = self._known[who] = Bucket(self._rate, now)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(who)
        return bucket.take(now)
