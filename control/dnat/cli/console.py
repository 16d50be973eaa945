"""One way to write tables: no address, port or identifier is cut off, in a pipe or on a narrow terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Literal, TextIO

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 200
"""Columns when the output is not a terminal."""
SENTENCE_WIDTH = 24
"""Columns to which sentences in a table may be broken."""

Content = Literal["left", "right", "sentence"]
"""What a column holds: words, numbers, or text that may be broken."""

output_option = click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
"""For people, or for programs."""


def coloured(stream: TextIO) -> bool:
    """Whether colours belong there: a terminal, and nobody who set NO_COLOR (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def output() -> Console:
    """The standard output."""
    from rich import console

    class Console(console.Console):
        def on_broken_pipe(self) -> None:
            # rich would end the program with exit code 1.
            raise BrokenPipeError

    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def table(columns: Mapping[str, Content], title: str | None = None) -> Table:
    """An empty table with these headings."""
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for name, content in columns.items():
        made.add_column(name, justify="right" if content == "right" else "left", no_wrap=content != "sentence")
    return made


def write(filled: Table) -> None:
    """Print a table. What does not fit, with its sentences broken, makes longer lines: half an address says nothing."""
    console = output()
    widths = (max(map(_width, column.cells), default=0) for column in filled.columns if not column.no_wrap)
    spare = sum(max(0, width - SENTENCE_WIDTH) for width in widths)
    console.width = max(console.width, _width(filled) - spare)
    console.print(filled)


def _width(thing: object) -> int:
    """Columns that it takes unbroken."""
    from rich.console import Console

    unbounded = Console(width=1_000_000)
    return unbounded.measure(thing).maximum  # type: ignore[arg-type]
