"""When a question is repeated: 250 ms, then doubled, each interval a random tenth longer or shorter."""

from __future__ import annotations

from collections.abc import Callable

Draw = Callable[[], int]
"""Gives 64 random bits."""

FIRST_INTERVAL = 0.25
MAX_INTERVAL = 8.0
"""Seconds, for whoever has somebody waiting."""
MAX_RENEWAL_INTERVAL = 60.0
"""Seconds, for renewals: nobody waits, and the lease stands until it expires."""


def jitter(draw: Draw) -> float:
    """A random factor between 0.9 and 1.1."""
    return 0.9 + 0.2 * draw() / 2**64


class Backoff:
    """The repeats of one message."""

    def __init__(self, now: float, draw: Draw, longest: float = MAX_INTERVAL) -> None:
        self.repeats = 0
        """How often the message was sent after the first time."""
        self.next_at = 0.0
        """When to send it again."""
        self._interval = FIRST_INTERVAL
        self._longest = longest
        self._draw = draw
        self._plan(now)

    def repeated(self, now: float) -> None:
        """The message was sent once more."""
        self.repeats += 1
        self._interval = min(2 * self._interval, self._longest)
        self._plan(now)

    def _plan(self, now: float) -> None:
        self.next_at = now + self._interval * jitter(self._draw)
