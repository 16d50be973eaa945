"""One timer that follows a state machine's deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls ``ring`` once when the deadline last given to `set` has come."""

    def __init__(self, ring: Callable[[], None], clock: Callable[[], float]) -> None:
        self._ring = ring
        self._clock = clock
        self._handle: asyncio.TimerHandle | None = None

    def set(self, deadline: float | None) -> None:
        """Move the deadline (seconds on ``clock``); None stops the alarm."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if deadline is not None:
            delay = max(0.0, deadline - self._clock())
            self._handle = asyncio.get_running_loop().call_later(delay, self._ring)
