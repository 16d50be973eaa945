"""The local API as it is on the wire: JSON lines over a Unix socket (docs/api.md)."""

from __future__ import annotations

import json
import socket
from collections import deque
from pathlib import Path
from typing import Any

from dnat import errors
from dnat.errors import DnatError, NotAnsweringError, NotRunningError, UsageError

VERSION = 1
NOT_UP = "dnat is not up here; start it with: sudo dnatctl up"
SILENT = "the daemon does not answer; see: dnatctl status"
GONE = "the daemon went away before it answered"
FOREIGN = "what answers on the daemon's socket is not this version of dnat: start it anew (systemctl restart dnat)"


def encode(method: str, parameters: dict[str, Any]) -> bytes:
    """One request. Raises UsageError for what is no text, as an argument in another encoding than UTF-8."""
    try:
        return json.dumps({"method": method, "parameters": parameters}, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError as error:
        wrong = ascii(error.object[error.start : error.end])
        raise UsageError(f"{wrong} is no character in UTF-8: use a terminal that speaks UTF-8") from None


def decode(line: bytes) -> dict[str, Any]:
    """One answer or event. Raises NotRunningError where the daemon ended in mid-sentence, or is none that we know."""
    if not line.endswith(b"\n"):
        raise NotRunningError(GONE)
    try:
        said = json.loads(line)
    except ValueError:
        said = None
    if not isinstance(said, dict) or not said.keys() & {"event", "error", "result"}:
        raise NotRunningError(FOREIGN)
    return said


def result_of(answer: dict[str, Any]) -> Any:
    """What an answer says. Raises the error that the daemon names."""
    if "error" in answer:
        try:
            kind, message = getattr(errors, answer["error"]["kind"], DnatError), answer["error"]["message"]
        except (KeyError, TypeError):
            raise NotRunningError(FOREIGN) from None
        raise (kind if isinstance(kind, type) and issubclass(kind, DnatError) else DnatError)(message)
    return answer["result"]


class Client:
    """A connection to the daemon of one instance.

    Raises NotRunningError when there is no daemon, and the error that the daemon names when it refuses.
    """

    def __init__(self, path: Path, timeout: float | None = 30.0) -> None:
        """``timeout``: seconds that an answer may take."""
        self._events: deque[dict[str, Any]] = deque()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self._timeout = timeout
        try:
            self._socket.connect(str(path))
        except PermissionError:
            self._socket.close()
            raise errors.PlatformError("the daemon's socket is root's: run this with sudo") from None
        except (TimeoutError, BlockingIOError):
            self._socket.close()
            raise NotAnsweringError(SILENT) from None
        except OSError:
            self._socket.close()
            raise NotRunningError(NOT_UP) from None
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and what belongs to it; whoever waits in `event` is woken."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._file.close()
        self._socket.close()

    def call(self, method: str, **parameters: Any) -> Any:
        """Call one method and wait for its result. Events that come meanwhile wait for `event`."""
        try:
            self._socket.sendall(encode(method, parameters))
        except TimeoutError:
            raise NotAnsweringError(SILENT) from None
        except OSError:
            pass  # it may have said why before it closed
        while "event" in (answer := self._read()):
            self._events.append(answer)
        return result_of(answer)

    def event(self) -> dict[str, Any]:
        """The next event after a ``watch``; waits without end. Raises NotRunningError when the daemon has gone."""
        if self._events:
            return self._events.popleft()
        return self._read(for_ever=True)

    def _read(self, *, for_ever: bool = False) -> dict[str, Any]:
        try:
            self._socket.settimeout(None if for_ever else self._timeout)
            line = self._file.readline()
        except TimeoutError:
            raise NotAnsweringError(SILENT) from None
        except (OSError, ValueError) as error:
            raise NotRunningError(f"the daemon went away: {error}") from None
        return decode(line)
