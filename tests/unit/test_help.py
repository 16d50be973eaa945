"""What ``--help`` says of each command: a line that is not cut, and an example."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from dnat.cli import dnatctl

WIDTH = 80
"""Columns of the narrowest terminal that is served."""


def _commands(command: click.Command, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            child = command.get_command(click.Context(command), name)
            assert child is not None
            yield from _commands(child, *words, name)


COMMANDS = dict(_commands(dnatctl))


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "dnatctl")
def test_help_has_an_example_and_is_not_cut(words: tuple[str, ...]) -> None:
    said = CliRunner().invoke(dnatctl, [*words, "--help"], terminal_width=WIDTH).output
    _, _, listed = said.partition("Commands:\n")
    assert [line for line in listed.splitlines() if line.endswith("...")] == []
    shown = re.search(rf"^  (Examples?|On [a-z ]+):  (.+\n)*.*\bdnatctl {' '.join(words)}", said, re.MULTILINE)
    assert shown, said
