"""One client of the local API, as long as it is connected."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

UNREAD_OCTETS = 65536
"""What a client leaves unread, at most; events beyond that are dropped, and it is told so."""
_SO_PEERGROUPS = 59
_MAX_GROUPS = 256
"""What Python's getsockopt has room for; of a user with more, only the main group counts."""
_CREDENTIALS = struct.Struct("3i")


class Session:
    """Who is there, and the way to it. Nothing here waits for a client but `drained`."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        peer: socket.socket = writer.get_extra_info("socket")
        _, uid, gid = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        self.uid: int = uid
        self._groups = {gid, *_supplementary_groups(peer)}
        self._catching_up: asyncio.Task[None] | None = None
        self.on_end: list[Callable[[], object]] = []
        """Called when the client has gone."""

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    def belongs_to(self, group: str) -> bool:
        """Whether the user is root or was a member of the group when it connected; everybody is of ``*``."""
        if self.is_root or group == "*":
            return True
        with contextlib.suppress(KeyError):
            return grp.getgrnam(group).gr_gid in self._groups
        return False

    def send(self, answer: Mapping[str, Any]) -> None:
        """Say something, however much the client has not read yet."""
        self._writer.write(json.dumps(answer).encode() + b"\n")

    def tell(self, event: Mapping[str, Any]) -> None:
        """Say something unless the client is far behind with reading; then it is told that it missed something."""
        if self._writer.is_closing() or self._catching_up is not None:
            return
        if self._writer.transport.get_write_buffer_size() > UNREAD_OCTETS:
            self._catching_up = asyncio.create_task(self._catch_up())
        else:
            self.send(event)

    async def drained(self) -> None:
        """Wait until the client has read what was sent. Raises ConnectionError when it has gone."""
        await self._writer.drain()

    def end(self) -> None:
        """The client has gone."""
        if self._catching_up is not None:
            self._catching_up.cancel()
        for callback in self.on_end:
            callback()
        self.on_end.clear()

    async def _catch_up(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()
            self._catching_up = None
            self.send({"event": "missed"})


def _supplementary_groups(peer: socket.socket) -> tuple[int, ...]:
    try:
        octets = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS * 4)
    except OSError:
        return ()
    return struct.unpack(f"{len(octets) // 4}I", octets)
