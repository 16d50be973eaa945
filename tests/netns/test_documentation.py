"""The documentation's commands work: every fenced block marked `sh NODE` is run on that node of the lab."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from nodes import Lab

DOCUMENTS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```sh (\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

BLOCKS = [
    pytest.param(node, text, id=f"{path.name}-{number}")
    for path in sorted(DOCUMENTS.glob("*.md"))
    for number, (node, text) in enumerate(_BLOCK.findall(path.read_text()), 1)
]


@pytest.mark.parametrize(("node", "text"), BLOCKS)
def test_a_block(routed_lab: Lab, node: str, text: str) -> None:
    for command in text.splitlines():
        # The tests are root already; the machine may not have sudo.
        done = routed_lab[node].run("bash", "-c", command.removeprefix("sudo "))
        assert done.stdout.strip(), f"{command} says nothing"
