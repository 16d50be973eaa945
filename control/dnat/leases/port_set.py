"""Sets of ports that change often: in words of 64 ports, so that a change touches few of them."""

from __future__ import annotations

import struct

from dnat.types import PortRange

WORD = 64
"""Ports of a word; word N begins with port N * WORD."""
WORDS = 65536 // WORD
FULL = (1 << WORD) - 1
_PACKED = struct.Struct(f"<{WORDS}Q")

Parts = list[tuple[int, int]]
"""Words and some of the bits of each."""


def parts(ports: PortRange) -> Parts:
    """Each word that a range touches, and its bits there."""
    first, low = divmod(ports.first, WORD)
    last, high = divmod(ports.last, WORD)
    if first == last:
        return [(first, (2 << high) - (1 << low))]
    whole = [(word, FULL) for word in range(first + 1, last)]
    return [(first, FULL & -(1 << low)), *whole, (last, (2 << high) - 1)]


class PortSet:
    """A set of ports."""

    __slots__ = ("_bits", "words")

    def __init__(self, bits: int = 0) -> None:
        """``bits``: as of `dnat.leases.bitmap`."""
        self.words: list[int] = list(_PACKED.unpack(bits.to_bytes(_PACKED.size, "little")))
        self._bits: int | None = bits

    @property
    def bits(self) -> int:
        """The whole set, as of `dnat.leases.bitmap`. After a change this takes some ten microseconds."""
        if self._bits is None:
            self._bits = int.from_bytes(_PACKED.pack(*self.words), "little")
        return self._bits

    def add(self, ports: Parts) -> None:
        for word, bits in ports:
            self.words[word] |= bits
        self._bits = None

    def remove(self, ports: Parts) -> None:
        for word, bits in ports:
            self.words[word] &= ~bits
        self._bits = None

    def replace(self, word: int, bits: int) -> None:
        """Have these ports, and no others, in a word."""
        self.words[word] = bits
        self._bits = None
