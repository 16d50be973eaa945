"""Every target that is promised, by the Makefile itself, a document or a docstring, can be made."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE))


def test_every_promised_target_has_a_rule() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == TARGETS


def test_documents_name_targets_that_are_there() -> None:
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "tests").rglob("*.py")]
    named = {name: path for path in texts for name in re.findall(r"`make ([a-z-]+)", path.read_text())}
    assert len(named) > 5
    assert {name: path for name, path in named.items() if name not in TARGETS} == {}
