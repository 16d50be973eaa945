"""The local API: JSON lines over a Unix socket. Anyone may look, root may change (docs/api.md)."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from dnat.errors import DnatError, PlatformError, UsageError, error_kind

log = logging.getLogger(__name__)

Method = Callable[..., Awaitable[Any]]


class ApiServer:
    """Answers the methods it was given. ``readers`` are open to every user, ``writers`` to root."""

    def __init__(self, path: Path, readers: dict[str, Method], writers: dict[str, Method]) -> None:
        self._path = path
        self._readers = readers
        self._writers = writers
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path=self._path, limit=65536)
        self._path.chmod(0o666)

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_root = _peer_uid(writer) == 0
        try:
            while line := await reader.readline():
                answer = await self._answer(line, is_root)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            pass
        finally:
            writer.close()

    async def _answer(self, line: bytes, is_root: bool) -> dict[str, Any]:
        """One request, one answer; whatever goes wrong is told to the client."""
        try:
            name, parameters = _parse(line)
            if name in self._writers and not is_root:
                raise PlatformError(f'"{name}" is for root: run this with sudo')
            method = self._readers.get(name) or self._writers.get(name)
            if method is None:
                raise UsageError(f'there is no method "{name}"')
            return {"result": await method(**parameters)}
        except DnatError as error:
            return _refusal(error)
        except (TypeError, ValueError) as error:
            return _refusal(UsageError(f"wrong parameters: {error}"))
        except Exception as error:
            log.exception("a local request failed")
            return _refusal(DnatError(f"internal error, see the daemon's log: {error}"))


def _parse(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        request = json.loads(line)
        name, parameters = request["method"], request.get("parameters", {})
        if not (isinstance(name, str) and isinstance(parameters, dict)):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError('a request is a line {"method": NAME, "parameters": {...}}') from None
    return name, parameters


def _refusal(error: DnatError) -> dict[str, Any]:
    return {"error": {"kind": error_kind(error), "message": str(error)}}


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    peer: socket.socket = writer.get_extra_info("socket")
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)
