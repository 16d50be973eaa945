"""Everyday commands: watching, filters, colours, exit codes, and never a traceback."""

from __future__ import annotations

import json

import pytest
from nodes import Lab

from dnat.cli import _COMMANDS

ESCAPE = "\x1b["


def test_show_filters_sorts_and_watches(routed_lab: Lab) -> None:
    phone, router = routed_lab["phone1"], routed_lab["router"]
    port = phone.ports("ephemeral").first
    shown = json.loads(router.dnatctl("show", "owners", "--filter", f"port={port}", "-o", "json").stdout)
    assert [row["host"] for row in shown["owners"]] == [phone.address]
    lines = phone.dnatctl("show", "leases", "--watch", "0.1", "--count", "3", "-o", "json").stdout.splitlines()
    assert [list(json.loads(line)) for line in lines] == [["leases"]] * 3
    table = router.dnatctl("show", "leases", "--sort", "-first").stdout
    firsts = [int(line.split()[1].split("-")[0]) for line in table.splitlines() if line.startswith(routed_lab.external)]
    assert len(firsts) > 3
    assert firsts == sorted(firsts, reverse=True)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("show", "leases", "--sort", "colour"), 2, 'there is no column "colour"'),
        (("ping", "nowhere"), 2, "not an address and port"),
        (("release", "1"), 2, "no lease here holds 1"),
        (("request", "--port", "80"), 3, "outside the pool"),
        (("show", "--watch", "nan"), 2, "no number of seconds"),
        (("--config",), 2, "No such option"),
    ],
)
def test_errors_are_one_sentence_with_a_code(routed_lab: Lab, command: tuple[str, ...], code: int, said: str) -> None:
    done = routed_lab["phone1"].dnatctl(*command, code=code)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert ESCAPE not in done.stderr


def test_colours_are_for_terminals_only(routed_lab: Lab) -> None:
    phone = routed_lab["phone1"]
    on_a_terminal = ("script", "-qec", "dnatctl show; dnatctl doctor", "/dev/null")
    assert ESCAPE in phone.run(*on_a_terminal).stdout
    assert "\x1b[3" not in phone.run("env", "NO_COLOR=1", *on_a_terminal).stdout
    assert ESCAPE not in phone.dnatctl("show").stdout


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_every_command_helps(routed_lab: Lab, command: str) -> None:
    said = routed_lab["phone1"].dnatctl(command, "--help").stdout
    assert "Usage: dnatctl " in said
