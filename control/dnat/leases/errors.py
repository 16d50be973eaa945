"""Why the lease table says no."""

from __future__ import annotations

import enum

from dnat.errors import DnatError, PlatformError


class Refusal(enum.Enum):
    """The table's reasons; `dnat.pap.server` gives each its result code."""

    OUTSIDE_POOL = "outside the pool"
    EXHAUSTED = "the pool has no such range left"
    TAKEN = "another lease stands there"
    HELD = "on hold for the host that had it"


class LeaseRefused(DnatError):
    """A range that was asked for cannot be granted now."""

    def __init__(self, refusal: Refusal, retry_after: int | None = None) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal
        self.retry_after = retry_after
        """Seconds until a hold ends, where that is what stands in the way."""


class LeaseConflict(PlatformError):
    """Records read from a store contradict each other: two claim the same ports, or one identifier twice."""
