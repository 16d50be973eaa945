"""Reading a BPF ring buffer (Documentation/bpf/ringbuf.rst) by the memory it shares with the kernel."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

_BUSY = 1 << 31
_DISCARD = 1 << 30
_HEADER = 8
_POSITION = struct.Struct("@L")


class RingBuffer:
    """The one consumer of a ring; ``fileno`` becomes readable when there is something to read."""

    def __init__(self, fd: int, size: int) -> None:
        """Takes over ``fd``, a BPF_MAP_TYPE_RINGBUF map of ``size`` octets."""
        self._fd = fd
        self._size = size
        self._consumer = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The data appears twice in a row, so that a record that wraps can be read in one piece.
        self._shared = mmap.mmap(fd, mmap.PAGESIZE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE)

    def fileno(self) -> int:
        return self._fd

    def records(self) -> Iterator[bytes]:
        """Records not yet read, oldest first; each is consumed as it is handed out."""
        (position,) = _POSITION.unpack_from(self._consumer)
        while position < _POSITION.unpack_from(self._shared)[0]:
            start = mmap.PAGESIZE + position % self._size
            (length,) = struct.unpack_from("=I", self._shared, start)
            if length & _BUSY:
                return
            size = length & ~_DISCARD
            record = self._shared[start + _HEADER : start + _HEADER + size]
            position += (_HEADER + size + 7) // 8 * 8
            _POSITION.pack_into(self._consumer, 0, position)
            if not length & _DISCARD:
                yield record

    def close(self) -> None:
        """Give up memory and file descriptor; safe to repeat."""
        self._consumer.close()
        self._shared.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
