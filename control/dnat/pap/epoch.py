"""How an agent notices that the server lost its state (docs/pap.md, 5; close to RFC 6887, 8.5)."""

from __future__ import annotations

from dataclasses import dataclass

TOLERANCE = 2.0
"""Seconds that an epoch may lag: it is rounded down, and clocks and networks jitter."""
DRIFT = 1 / 16
"""Part of the time passed that an epoch may lag: clocks run at different speeds."""


@dataclass(frozen=True, slots=True)
class EpochState:
    """The last epoch of the server, worth saving with the leases."""

    epoch: int
    """Seconds."""
    seen_at: float
    """When the answer that carried it came, on the agent's clock."""


def went_back(last: EpochState, epoch: int, asked_at: float) -> bool:
    """Whether an answer's epoch is smaller than a server with its state intact could have sent.

    The server wrote it no earlier than ``asked_at``, so an answer that was long under way accuses nobody.
    """
    passed = asked_at - last.seen_at
    return epoch < last.epoch + passed - max(TOLERANCE, DRIFT * abs(passed))
