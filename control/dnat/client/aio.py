"""Ports for a program that uses asyncio: ``async with lease(2) as ports: ...``."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from pathlib import Path
from typing import Any

from dnat.client.granted import AGAIN_SECONDS, ENDED, LOOK_SECONDS, Granted, end, stands, wish
from dnat.client.wire import NOT_UP, VERSION, decode, encode, result_of
from dnat.errors import DnatError, NotRunningError, PlatformError
from dnat.instance import Instance

MAX_LINE = 64 * 1024 * 1024


class AsyncClient:
    """As `dnat.client.Client`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._events: deque[dict[str, Any]] = deque()

    @classmethod
    async def connect(cls, path: Path | None = None) -> AsyncClient:
        """Raises NotRunningError, PlatformError."""
        try:
            path = path or Instance.current().socket
            client = cls(*await asyncio.open_unix_connection(path, limit=MAX_LINE))
        except PermissionError:
            raise PlatformError("the daemon's socket is root's: run this with sudo") from None
        except OSError:
            raise NotRunningError(NOT_UP) from None
        try:
            await client.call("hello", versions=[VERSION])
        except BaseException:
            client.close()
            raise
        return client

    def close(self) -> None:
        """End the connection, and what belongs to it."""
        self._writer.close()

    async def call(self, method: str, **parameters: Any) -> Any:
        """Call one method; one at a time, and none while somebody waits for an `event`."""
        with contextlib.suppress(OSError):
            self._writer.write(encode(method, parameters))
            await self._writer.drain()
        while "event" in (answer := await self._read()):
            self._events.append(answer)
        return result_of(answer)

    async def event(self) -> dict[str, Any]:
        """The next event after a ``watch``. Raises NotRunningError when the daemon has gone."""
        return self._events.popleft() if self._events else await self._read()

    async def _read(self) -> dict[str, Any]:
        try:
            line = await self._reader.readline()
        except OSError as error:
            raise NotRunningError(f"the daemon went away: {error.strerror}") from None
        return decode(line)


class AsyncPortLease(Granted):
    """As `dnat.client.PortLease`."""

    def __init__(self, path: Path | None, wanted: dict[str, Any]) -> None:
        """`lease` makes one."""
        self._path = path
        self._wanted = wanted
        self._client: AsyncClient
        self._watching: asyncio.Task[str]

    async def __aenter__(self) -> AsyncPortLease:
        self._client = await AsyncClient.connect(self._path)
        try:
            granted = await self._client.call("lease", **self._wanted)
            self._take(granted["lease"], await self._watched())
        except BaseException:
            self._client.close()
            raise
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        await asyncio.wait([self._watching])
        self._client.close()

    @property
    def held(self) -> bool:
        """Whether the ports may be used."""
        return not self._watching.done()

    async def lost(self) -> str:
        """Wait until the ports are lost; returns why."""
        return await asyncio.shield(self._watching)

    async def _watch(self) -> str:
        while True:
            try:
                event = await self._client.event()
            except NotRunningError:
                event = {} if await self._find_again() else {"reason": ENDED}
            if event.get("event") == "missed" and not stands(self.id, await self._watched()):
                event = {"reason": ENDED}
            if reason := end(event):
                return reason

    async def _watched(self) -> dict[str, Any]:
        """Hear from now on what becomes of this connection's leases; what they are now."""
        watched: dict[str, Any] = await self._client.call("watch", mine=True)
        return watched

    async def _find_again(self) -> bool:
        """Connect to the daemon that has come since, and go on; False if there is none or the lease has ended."""
        self._client.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                while True:
                    try:
                        self._client = await AsyncClient.connect(self._path)
                        await self._client.call("keep", leases=[self.id])
                        return stands(self.id, await self._watched())
                    except DnatError:
                        await asyncio.sleep(AGAIN_SECONDS)
        return False


def lease(
    count: int = 1,
    *,
    first: int | None = None,
    protocol: str = "any",
    parity: str = "any",
    exact: bool = True,
    lifetime: int = 0,
    path: Path | None = None,
) -> AsyncPortLease:
    """As `dnat.client.lease`, for ``async with``; entering it raises what that does."""
    return AsyncPortLease(path, wish(count, first, protocol, parity, exact, lifetime))
