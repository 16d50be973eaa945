"""Listening: which tone does a recording hold, for how long, how clean?

A Goertzel filter (one bin of a DFT) per window is enough, and needs nothing but the standard library.
"""

from __future__ import annotations

import array
import math
import sys
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WINDOW = 0.1
"""Seconds per window: resolves 10 Hz, so tones that are to be told apart lie multiples of 10 Hz apart."""
PRESENT = 0.8
"""Share of a window's energy that must lie in the tone for the window to count."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a recording holds."""

    tone: int
    """The expected frequency, hertz."""
    seconds: float
    """For how long the tone was there."""
    length: float
    """Length of the recording, seconds."""
    purity: float
    """Median over all windows of the tone's share of the energy, 0 to 1."""

    def lasted(self, seconds: float) -> bool:
        """Whether the tone was heard for at least that long and for nearly all of the recording."""
        return self.seconds >= seconds and self.seconds >= 0.9 * self.length - 0.5


def listen(path: Path, tone: int) -> Heard:
    """Look for ``tone`` (hertz) in a 16-bit mono WAV file. Raises OSError, wave.Error, EOFError."""
    with wave.open(str(path), "rb") as recording:
        if recording.getsampwidth() != 2 or recording.getnchannels() != 1:
            raise wave.Error(f"{path}: not 16-bit mono")
        rate = recording.getframerate()
        samples = array.array("h", recording.readframes(recording.getnframes()))
    if sys.byteorder == "big":
        samples.byteswap()
    size = int(rate * WINDOW)
    shares = [share(samples[at : at + size], tone, rate) for at in range(0, len(samples) - size + 1, size)]
    return Heard(
        tone=tone,
        seconds=WINDOW * sum(1 for value in shares if value >= PRESENT),
        length=len(samples) / rate,
        purity=sorted(shares)[len(shares) // 2] if shares else 0.0,
    )


def share(samples: Sequence[int], tone: float, rate: int) -> float:
    """Share (0 to 1) of the energy of ``samples`` that lies at ``tone`` hertz."""
    energy = sum(value * value for value in samples)
    # Comfort noise and the codec's rounding are not sound.
    if energy < 100 * 100 * len(samples):
        return 0.0
    factor = 2 * math.cos(2 * math.pi * tone / rate)
    before = last = 0.0
    for value in samples:
        before, last = last, value + factor * last - before
    power = last * last + before * before - factor * last * before
    return min(1.0, 2 * power / (len(samples) * energy))
