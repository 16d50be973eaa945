"""``--watch`` and ``--count`` of the commands that show what is the case: again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from dnat.cli import words
from dnat.errors import UsageError

T = TypeVar("T")


def watch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the parameters ``watch`` and ``count`` of `repeat`."""
    counted = click.option("--count", type=click.IntRange(1), help="With --watch: stop after so many times.")
    watched = click.option(
        "--watch", type=words.Seconds(0.1, 3600), metavar="SECONDS", help="Show again and again, until Ctrl-C."
    )
    return watched(counted(command))


def repeat(
    look: Callable[[], T], tell: Callable[[T], None], output: str, watch: float | None, count: int | None
) -> None:
    """Look and tell once, or every ``watch`` seconds, ``count`` times. Tables replace each other on a terminal.

    Raises UsageError for a count without a time.
    """
    if count is not None and watch is None:
        raise UsageError(f"--count says how often --watch shows it: --watch 1 --count {count}")
    shown = 0
    while True:
        seen = look()
        if watch is not None and output == "table" and sys.stdout.isatty():
            click.clear()
        tell(seen)
        shown += 1
        if watch is None or shown == count:
            return
        sys.stdout.flush()
        time.sleep(watch)
