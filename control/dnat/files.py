"""Small files that are replaced whole: whoever reads one sees the former content or the new, and never half of it."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, octets: bytes, *, durable: bool = False, mode: int = 0o666) -> None:
    """Write a file anew; ``durable``: it is on the disk when this returns. The umask counts. Raises OSError."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(octets)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    if durable:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
