"""docs/claims.md: every claim has tests, which exist and name it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CLAIMS = range(1, 42)


def _rows() -> list[tuple[set[int], list[str]]]:
    rows = []
    for line in (ROOT / "docs/claims.md").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| ([0-9, ]+) \|", line):
            rows.append(({int(number) for number in match[1].split(",")}, re.findall(r"`([^`]+::[^`]+)`", line)))
    return rows


def _says(name: str) -> str:
    """Docstring of a test. Fails when there is no such test."""
    path, _, function = name.partition("::")
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return ast.get_docstring(node) or ""
    pytest.fail(f"there is no test {name}")


def test_every_claim_has_a_row_of_its_own() -> None:
    listed = [claim for claims, _ in _rows() for claim in claims]
    assert sorted(listed) == list(CLAIMS)


@pytest.mark.parametrize(("claims", "tests"), _rows(), ids=lambda value: str(value) if isinstance(value, set) else "")
def test_the_tests_name_the_claims(claims: set[int], tests: list[str]) -> None:
    assert tests
    named: set[int] = set()
    for test in tests:
        head = re.match(r"Claims ([0-9, ]+):", " ".join(_says(test).split()))
        assert head, f"{test} does not begin with the claims that it shows"
        named |= {int(number) for number in head[1].split(",")}
    assert claims <= named
