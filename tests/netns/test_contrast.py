"""The contrast in short: the same phones and calls through masquerading and through dnat (`make demo-contrast`)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from dnatcontrast.calls import Outcome, make
from dnatcontrast.ways import DNAT, MASQUERADE, standing


@pytest.fixture
def short_path() -> Iterator[Path]:
    """baresip cuts names of recordings off after 128 characters; pytest's own directories are long."""
    with tempfile.TemporaryDirectory(prefix="dnat-") as path:
        yield Path(path)


def test_masquerading_loses_a_voice_that_dnat_carries(short_path: Path) -> None:
    """In clear, out and in: behind masquerading the phone names an address that nobody outside can reach."""

    def through(name: str) -> dict[str, Outcome]:
        directory = short_path / name
        with standing(name, f"dt{os.getpid()}-{name[0]}", directory) as way:
            return {outcome.direction: outcome for outcome in make(way, directory, encryptions=(False,))}

    masqueraded, distributed = through(MASQUERADE), through(DNAT)
    for direction in ("out", "in"):
        lame, whole = masqueraded[direction], distributed[direction]
        assert lame.answered and lame.hears_outside and not lame.hears_inside
        assert whole.answered and whole.hears_outside and whole.hears_inside
        assert whole.setup is not None and whole.setup < 5
        assert len(whole.delays) > 250, "packets of both directions, each seen at both ends"
