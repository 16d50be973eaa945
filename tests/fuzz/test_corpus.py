"""What fuzzing has found so far, and what it began with, read again; and a handful of new mutations of each."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
MUTATIONS = 300


def known(name: str) -> list[bytes]:
    return [*TARGETS[name].seeds(), *(path.read_bytes() for path in sorted((CORPUS / name).iterdir()))]


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_survived(name: str) -> None:
    found = known(name)
    assert len(found) > 3, "the corpus is there"
    for octets in found:
        TARGETS[name].feed(octets)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_are_survived(name: str) -> None:
    dice, found = random.Random(name), known(name)
    for _ in range(MUTATIONS):
        octets = bytearray(dice.choice(found))
        for _ in range(dice.randrange(1, 5)):
            start, end = sorted(dice.randrange(len(octets) + 1) for _ in range(2))
            other = dice.choice(found)
            replacement = (dice.randbytes(dice.randrange(4)), other[start:end], octets[start:end] * 2, b"")
            octets[start : min(end, start + 40)] = dice.choice(replacement)[:200]
        TARGETS[name].feed(bytes(octets))
