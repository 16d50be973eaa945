"""baresip's control socket (module ctrl_tcp): JSON in netstrings, commands out, answers and events in."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dnat.system import netns

ANSWER_TIMEOUT = 3.0


@dataclass(frozen=True, slots=True)
class PhoneEvent:
    """Something that happened in a phone."""

    type: str
    """baresip's name for it, such as CALL_ESTABLISHED, CALL_RTPESTAB, CALL_MENC, CALL_RTCP, CALL_CLOSED."""
    account: str
    """SIP URI of the account it happened to."""
    peer: str
    """SIP URI of the other side; empty when there is none."""
    call_id: str
    """SIP Call-ID; empty when there is none."""
    direction: str
    """``incoming``, ``outgoing`` or empty."""
    param: str
    """Detail, depends on the type: reason of the end, SRTP suite."""
    at: float
    """When it was read, seconds since 1970."""


def split_netstrings(data: bytes) -> tuple[list[bytes], bytes]:
    """Complete netstrings at the start of ``data``, and the unfinished rest. ValueError on other things."""
    found: list[bytes] = []
    while True:
        digits, colon, rest = data.partition(b":")
        if not colon and (not digits or (digits.isdigit() and len(digits) < 10)):
            return found, data
        length = int(digits) if colon else -1
        if length < 0:
            raise ValueError("no netstring")
        if len(rest) <= length:
            return found, data
        if rest[length : length + 1] != b",":
            raise ValueError("netstring without its comma")
        found.append(rest[:length])
        data = rest[length + 1 :]


class ControlConnection:
    """An open control connection; a thread of its own reads it. baresip serves one connection at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self.events: list[PhoneEvent] = []
        self._connection = connection
        self._answers: dict[str, dict[str, Any]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._tokens: Iterator[int] = itertools.count(1)
        self._reader = threading.Thread(target=self._read, name="phone-control", daemon=True)
        self._reader.start()

    @classmethod
    def open(cls, namespace: str, port: int) -> ControlConnection | None:
        """Connect to 127.0.0.1 inside the namespace; None when nobody listens there yet."""
        with netns.enter(namespace):
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=1.0)
            except OSError:
                return None
        connection.settimeout(None)
        return cls(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._reader.join()

    def command(self, command: str, params: str | None = None) -> dict[str, Any] | None:
        """Send a command and return its answer (``ok``, ``data``), None when none came in time."""
        token = str(next(self._tokens))
        message = {"command": command, "token": token}
        if params is not None:
            message["params"] = params
        data = json.dumps(message).encode()
        try:
            self._connection.sendall(b"%d:%s," % (len(data), data))
        except OSError:
            return None
        with self._changed:
            self._changed.wait_for(lambda: token in self._answers or self._closed, ANSWER_TIMEOUT)
            return self._answers.pop(token, None)

    def await_event(self, wanted: Callable[[PhoneEvent], bool], mark: int, timeout: float) -> PhoneEvent | None:
        """First event from position ``mark`` on that is wanted, None when none came in time."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for event in self.events[mark:]:
                    if wanted(event):
                        return event
                mark = len(self.events)
                remaining = deadline - time.monotonic()
                if remaining <= 0 or self._closed:
                    return None
                self._changed.wait(remaining)

    def _read(self) -> None:
        data = b""
        try:
            while chunk := self._connection.recv(65536):
                messages, data = split_netstrings(data + chunk)
                for message in messages:
                    self._take(json.loads(message))
        except (OSError, ValueError):
            pass
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        with self._changed:
            if message.get("event"):
                self.events.append(
                    PhoneEvent(
                        type=message.get("type", ""),
                        account=message.get("accountaor", ""),
                        peer=message.get("peeruri", ""),
                        call_id=message.get("id", ""),
                        direction=message.get("direction", ""),
                        param=message.get("param", ""),
                        at=time.time(),
                    )
                )
            else:
                self._answers[message.get("token", "")] = message
            self._changed.notify_all()
