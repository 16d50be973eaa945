"""Client of the daemon's local API: JSON lines over a Unix socket (docs/api.md)."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from dnat import errors
from dnat.errors import DnatError, NotRunningError


class Client:
    """A connection to the daemon of one instance.

    Raises NotRunningError when there is no daemon, and the error that the daemon names when it refuses.
    """

    def __init__(self, path: Path, timeout: float = 30.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
        except PermissionError:
            raise errors.PlatformError("the daemon's socket is root's: run this with sudo") from None
        except OSError:
            self._socket.close()
            raise NotRunningError("dnat is not up here; start it with: sudo dnatctl up") from None
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def call(self, method: str, **parameters: Any) -> Any:
        """Call one method and wait for its result."""
        request = json.dumps({"method": method, "parameters": parameters}).encode() + b"\n"
        try:
            self._socket.sendall(request)
            line = self._file.readline()
        except TimeoutError:
            raise NotRunningError("the daemon does not answer; see: dnatctl status") from None
        except OSError as error:
            raise NotRunningError(f"the daemon went away: {error.strerror}") from None
        if not line:
            raise NotRunningError("the daemon went away before it answered")
        answer = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["error"]["kind"], DnatError)
            raise kind(answer["error"]["message"])
        return answer["result"]
