"""Archives that a Linux kernel unpacks as its first file system (cpio, format "newc")."""

from __future__ import annotations

import stat

REGULAR, DIRECTORY = stat.S_IFREG | 0o755, stat.S_IFDIR | 0o755


def archive(entries: list[tuple[str, int, bytes]]) -> bytes:
    """Names, modes and contents, directories before what is in them."""
    parts = []
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the name, checksum
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        parts += [_padded(head), _padded(data)]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
