"""Nothing that is asked of a NAT is left out, and the document says what the tests say."""

from __future__ import annotations

import pytest
from requirements import DOCUMENT, Requirement, render, requirements, written

ROLES = {"host", "router", "server"}


@pytest.mark.parametrize("row", requirements(), ids=lambda row: f"{row.document} {row.name}")
def test_every_requirement_has_a_test_or_a_reason(row: Requirement) -> None:
    if row.without:
        assert row.test not in written()
        assert not row.on and not row.but
    else:
        assert row.test in written()
        assert row.on and set(row.on) <= ROLES


def test_every_test_has_a_requirement() -> None:
    assert written() == {row.test for row in requirements() if not row.without}


def test_the_document_is_the_newest_and_nothing_fails() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == render(dict.fromkeys(written(), True)), "run `make conformance`"
