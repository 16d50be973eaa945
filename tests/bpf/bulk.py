"""Packets in bulk: made from valid ones by chance, and run through a program as fast as Python can."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Sequence

from dnat.dataplane import bpf

_SPARE = 256
"""Octets that a program may add."""


class Runner:
    """BPF_PROG_TEST_RUN with everything made once."""

    def __init__(self, fd: int, longest: int = 2048) -> None:
        self._in = ctypes.create_string_buffer(longest)
        self._out = ctypes.create_string_buffer(longest + _SPARE)
        fields = (fd, 0, 0, len(self._out), ctypes.addressof(self._in), ctypes.addressof(self._out), 1)
        self._attributes = ctypes.create_string_buffer(struct.pack("=4I2QI", *fields), 80)
        self._number = bpf._SYSCALL[bpf.platform.machine()]

    def __call__(self, frame: bytes) -> tuple[int, bytes]:
        """Verdict, and the frame as it left."""
        ctypes.memmove(self._in, frame, len(frame))
        struct.pack_into("=3I", self._attributes, 4, 0, len(frame), len(self._out))
        if bpf._libc.syscall(self._number, int(bpf.Command.PROG_TEST_RUN), self._attributes, 80) < 0:
            raise OSError(ctypes.get_errno(), f"BPF_PROG_TEST_RUN refuses {frame.hex()}")
        verdict, _, size = struct.unpack_from("=iII", self._attributes, 4)
        return verdict, ctypes.string_at(self._out, size)


class Mutator:
    """Packets that are valid, nearly valid, or not at all."""

    def __init__(self, seed: int, frames: Sequence[bytes], ports: Sequence[int]) -> None:
        self._random = random.Random(seed)
        self._frames = frames
        self._ports = [port.to_bytes(2) for port in ports]

    def next(self) -> bytes:
        """One frame of at least the length of an Ethernet and an IP header."""
        chance = self._random.random
        frame = bytearray(self._frames[int(chance() * len(self._frames))])
        l4 = 14 + (frame[14] & 15) * 4
        dice = chance()
        if dice < 0.8:
            # Another port or identifier; the checksum is wrong from here on, and has to stay as wrong.
            at = l4 + (4 if frame[23] == 1 else 2 * (chance() < 0.5))
            frame[at : at + 2] = self._ports[int(chance() * len(self._ports))]
        if frame[23] == 1 and dice < 0.4 and len(frame) > l4 + 40:
            at = l4 + 8 + 20 + 2 * (chance() < 0.5)
            frame[at : at + 2] = self._ports[int(chance() * len(self._ports))]
        if chance() < 0.3:
            # Fragments, flags and identifications.
            frame[18:22] = self._random.randbytes(4) if dice < 0.5 else self._random.randbytes(2) + b"\0\0"
        while chance() < 0.25:
            frame[int(chance() * len(frame))] = int(chance() * 256)
        if chance() < 0.08:
            # The kernel runs nothing on less than an IP header.
            del frame[34 + int(chance() * max(0, len(frame) - 33)) :]
        return bytes(frame)
