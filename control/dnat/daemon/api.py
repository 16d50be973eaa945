"""The local API: JSON lines over a Unix socket (docs/api.md).

Whoever connects harms its own connection at most: lines, connections, questions a second and what waits to be read
are bounded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from dnat.daemon.parameters import checked
from dnat.daemon.session import Session
from dnat.errors import DnatError, PlatformError, UsageError, error_kind
from dnat.pap.limits import Buckets, Rate

log = logging.getLogger(__name__)

Method = Callable[..., Awaitable[Any]]
SessionMethod = Callable[..., Awaitable[Any]]
"""A method whose first argument is the `Session`."""

VERSIONS = (1,)
LINE_OCTETS = 65536
"""A request has at most so many."""
CONNECTIONS_PER_USER = 32
CONNECTIONS = 192
"""Of all users but root, who has some more."""
CONNECTIONS_WITH_ROOT = 256
QUESTIONS = Rate(50, 200)
"""Of one user that is not root; who asks more waits."""
WAIT_SECONDS = 0.05


class ApiServer:
    """Answers the methods it was given."""

    def __init__(
        self,
        path: Path,
        *,
        readers: Mapping[str, Method],
        writers: Mapping[str, Method],
        watchers: Mapping[str, SessionMethod],
        programs: Mapping[str, SessionMethod],
        group: str,
    ) -> None:
        """``readers`` and ``watchers`` are open to every user, ``writers`` to root, ``programs`` to root and to members
        of ``group`` (``*``: to everybody). Watchers and programs are given the session.
        """
        self._path = path
        self._readers = {**readers, "hello": _hello}
        self._writers = writers
        self._watchers = watchers
        self._programs = programs
        self._group = group
        self._sessions: set[Session] = set()
        self._questions = Buckets(QUESTIONS)
        self._server: asyncio.Server | None = None
        self._stopping = False

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path=self._path, limit=LINE_OCTETS)
        self._path.chmod(0o666)

    def stop(self) -> None:
        """Let nobody in any more. What the sessions hold stays theirs: another daemon may follow."""
        self._stopping = True
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    @property
    def connections(self) -> int:
        """How many clients there are."""
        return len(self._sessions)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(writer)
        try:
            if reason := self._crowded(session):
                session.send({"error": {"kind": "PlatformError", "message": reason}})
                return
            self._sessions.add(session)
            while line := await reader.readline():
                while not session.is_root and not self._questions.take(session.uid, asyncio.get_running_loop().time()):
                    await asyncio.sleep(WAIT_SECONDS)
                session.send(await self._answer(line, session))
                await session.drained()
        except ConnectionError:
            pass
        except ValueError:
            session.send(_refusal(UsageError(f"a request is a line of at most {LINE_OCTETS} octets")))
        finally:
            self._sessions.discard(session)
            writer.close()
            if not self._stopping:
                session.end()

    def _crowded(self, session: Session) -> str | None:
        """Why nobody else can be let in."""
        if session.is_root:
            return "too many programs are connected" if len(self._sessions) >= CONNECTIONS_WITH_ROOT else None
        theirs = sum(each.uid == session.uid for each in self._sessions)
        if theirs >= CONNECTIONS_PER_USER:
            return f"this user has {theirs} connections to dnat already; close some"
        everybodys = sum(not each.is_root for each in self._sessions)
        return "too many programs are connected; try again later" if everybodys >= CONNECTIONS else None

    async def _answer(self, line: bytes, session: Session) -> dict[str, Any]:
        """One request, one answer; whatever goes wrong is told to the client."""
        try:
            name, parameters = _parse(line)
            return {"result": await self._call(name, parameters, session)}
        except DnatError as error:
            return _refusal(error)
        except (TypeError, ValueError) as error:
            return _refusal(UsageError(f"wrong parameters: {error}"))
        except Exception as error:
            log.exception("a local request failed")
            return _refusal(DnatError(f"internal error, see the daemon's log: {error}"))

    async def _call(self, name: str, parameters: dict[str, Any], session: Session) -> Any:
        said = name.replace("_", " ")
        if name in self._writers and not session.is_root:
            raise PlatformError(f'"{said}" is for root: run this with sudo')
        if name in self._programs and not session.belongs_to(self._group):
            raise PlatformError(
                f'"{said}" is for root and for members of the group "{self._group}" (api.group in dnat.toml);'
                f" to make a user one: usermod -aG {self._group} USER (docs/api.md)"
            )
        if method := self._readers.get(name) or self._writers.get(name):
            return await method(**checked(method, parameters))
        if method := self._watchers.get(name) or self._programs.get(name):
            return await method(session, **parameters)
        raise UsageError(f'there is no method "{name}"')


async def _hello(versions: list[int] | None = None) -> dict[str, Any]:
    """Agree on a version of the API: the highest that both sides speak."""
    common = set(VERSIONS) & set(versions if versions is not None else VERSIONS)
    if not common:
        raise UsageError(
            f"this daemon speaks version {', '.join(map(str, VERSIONS))} of the API, and none that was named"
        )
    return {"version": max(common), "versions": list(VERSIONS)}


class _Request(msgspec.Struct):
    method: str
    parameters: dict[str, Any] = {}


def _parse(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        request = msgspec.json.decode(line, type=_Request)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        raise UsageError('a request is a line {"method": NAME, "parameters": {...}} in UTF-8') from None
    return request.method, request.parameters


def _refusal(error: DnatError) -> dict[str, Any]:
    return {"error": {"kind": error_kind(error), "message": str(error)}}
