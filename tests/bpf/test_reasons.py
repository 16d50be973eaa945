"""Every counter of both programs, and so every reason to drop, is raised by a test of packets."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dnat.dataplane import abi

HERE = Path(__file__).parent
TESTS = {"host": "test_host_", "router": "test_router_"}
OUT_OF_REACH = {"host": {"drop_rewrite_failed"}, "router": set()}
"""The host's writes are within headers that were found whole: only a kernel without memory refuses them."""


def expected_by_tests(role: str) -> set[str]:
    """Labels of counters that a role's tests of packets name, as a string of its own."""
    words = set()
    for path in HERE.glob(f"{TESTS[role]}*.py"):
        if path.stem.endswith("_model"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
    return words


@pytest.mark.parametrize("role", ["host", "router"])
def test_every_counter_is_expected_by_a_test(role: abi.Role) -> None:
    missing = {counter.name.lower() for counter in abi.counters_of(role)} - expected_by_tests(role)
    assert missing == OUT_OF_REACH[role]
