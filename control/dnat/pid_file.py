"""The file that says which process is the daemon, and whether it lives: the kernel drops its lock with the process."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from dnat.errors import AlreadyUpError, PlatformError

_LOCK_SECONDS = 0.5
"""How long to try: `holder` has the lock, too, for a moment."""


def lock(path: Path) -> IO[str]:
    """Become the daemon until the file is closed. Raises AlreadyUpError when another process is it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise PlatformError(f"{path} cannot be written: {error.strerror}") from None
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                raise AlreadyUpError("dnat is already up here; see: dnatctl status") from None
            time.sleep(0.02)
    try:
        file.truncate(0)
        # At once: what stays in a buffer would be written, and fail, when the file is closed.
        os.write(file.fileno(), f"{os.getpid()}\n".encode())
    except OSError as error:
        file.close()
        raise PlatformError(f"{path} cannot be written: {error.strerror}") from None
    return file


def holder(path: Path) -> int | None:
    """Process id of the daemon that is starting, up, or hanging; None when there is none."""
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read())
    except (FileNotFoundError, ValueError):
        pass
    return None
