"""The contrast that the documentation shows is that of the measured file beside it."""

from __future__ import annotations

import json
from pathlib import Path

from dnatcontrast.report import markdown
from dnatcontrast.ways import DNAT, MASQUERADE

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = json.loads((DOCS / "contrast.json").read_text())


def test_the_table_is_of_the_measured_file() -> None:
    assert markdown(RESULTS) in (DOCS / "contrast.md").read_text()


def test_the_asymmetry_that_it_is_about_was_measured() -> None:
    audio = {way: {call["audio"] for call in RESULTS["calls"] if call["way"] == way} for way in (MASQUERADE, DNAT)}
    assert audio[DNAT] == {"both ways"}
    assert "both ways" not in audio[MASQUERADE]
