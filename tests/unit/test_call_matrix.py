"""The calls that are made cover what they promise to, and the documentation shows just them."""

from __future__ import annotations

from pathlib import Path

from call_matrix import CASES, everything, impossible, pairs, table

TELEPHONY = Path(__file__).parents[2] / "docs/telephony.md"


def test_every_pair_that_can_be_is_called() -> None:
    made = set().union(*map(pairs, CASES))
    assert set().union(*map(pairs, everything())) - made == set()


def test_no_call_is_made_twice_or_cannot_be() -> None:
    assert len(set(CASES)) == len(CASES)
    assert [impossible(case) for case in CASES if impossible(case)] == []


def test_the_documentation_shows_them() -> None:
    assert table() in TELEPHONY.read_text()
