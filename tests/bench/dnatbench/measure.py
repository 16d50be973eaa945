"""Samples taken in turn, so that a machine that changes its speed changes it for all; medians and quartiles."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Samples = dict[str, list[float]]
"""By name, one value for each round."""


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        if len(values) < 2:
            return cls(values[0], values[0], values[0], len(values))
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high, len(values))


def interleave(variants: Mapping[str, Callable[[], float]], rounds: int) -> Samples:
    """Call every variant once in each round, forwards and backwards in turn."""
    samples: Samples = {name: [] for name in variants}
    for number in range(rounds):
        order = list(variants)
        for name in order if number % 2 == 0 else reversed(order):
            samples[name].append(variants[name]())
    return samples


def net(samples: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """What each round cost beyond the baseline of the same round."""
    return [sample - base for sample, base in zip(samples, baseline, strict=True)]


def ratio(samples: Sequence[float], reference: Sequence[float]) -> Summary:
    """Of the same rounds. A reference that measured as nothing gives infinity."""
    return Summary.of([a / b if b > 0 else float("inf") for a, b in zip(samples, reference, strict=True)])


@contextmanager
def one_cpu() -> Iterator[int]:
    """Stay on one CPU, the last that this process may use."""
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed)
    os.sched_setaffinity(0, {cpu})
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, allowed)


class CpuClock:
    """CPU time of this thread and of the kernel's own for what the thread leaves to it, on one CPU."""

    def __init__(self, cpu: int) -> None:
        self._softirq = _kernel_thread(f"ksoftirqd/{cpu}")

    def ns(self) -> int:
        """Nanoseconds since some time in the past."""
        softirq = int(self._softirq.read_text().split()[0]) if self._softirq else 0
        return time.thread_time_ns() + softirq


def _kernel_thread(name: str) -> Path | None:
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "comm").read_text().strip() == name:
                return entry / "schedstat"
        except OSError:
            continue
    return None
