"""One way to write tables: as wide as the terminal, and never cut off in a pipe."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 200
"""Columns when the output is not a terminal."""

output_option = click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
"""For people, or for programs."""


def coloured(stream: TextIO) -> bool:
    """Whether colours belong there: a terminal, and nobody who set NO_COLOR (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def output() -> Console:
    """The standard output."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
