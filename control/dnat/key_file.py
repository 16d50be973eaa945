"""A host's key: one line of text, in a file that only root reads, and as an operator carries it."""

from __future__ import annotations

import base64
import os
import re
import stat
from pathlib import Path

from dnat import files
from dnat.errors import PlatformError, UsageError
from dnat.pap.auth import HMAC_SHA_256, Key

_TEXT = re.compile(r"dnat-key-1:(?P<id>[0-9a-f]{8}):(?P<secret>[A-Za-z0-9_-]{43})")


def to_text(key: Key) -> str:
    """``dnat-key-1:IDENTIFIER:SECRET``."""
    assert key.algorithm == HMAC_SHA_256
    return f"dnat-key-1:{key.label}:{base64.urlsafe_b64encode(key.secret).decode().rstrip('=')}"


def from_text(text: str) -> Key:
    """Raises UsageError, which never repeats the text."""
    found = _TEXT.fullmatch(text.strip())
    try:
        if found:
            return Key(int(found["id"], 16), base64.urlsafe_b64decode(found["secret"] + "="))
    except ValueError:
        pass
    raise UsageError("this is no key; it is the line that `dnatctl key add` printed: dnat-key-1:…")


def load(path: Path) -> Key | None:
    """The key of a file; None when there is no file. Raises PlatformError."""
    try:
        with path.open(encoding="ascii") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise PlatformError(f"others can read the key {path}, so it is no secret: chmod 600 it, or change it")
            return from_text(file.read())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise PlatformError(f"the key {path} cannot be read: {error}") from None
    except UsageError:
        raise PlatformError(f"{path} holds no key: remove it (dnatctl key forget), or install one") from None


def save(path: Path, key: Key) -> None:
    """Replace the file in one step, durably. Raises PlatformError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, f"{to_text(key)}\n".encode(), durable=True, mode=0o600)
    except OSError as error:
        raise PlatformError(f"the key {path} cannot be written: {error}") from None
