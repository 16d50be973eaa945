"""The SIP server's two SQLite files: users, written here; registrations, written by Kamailio.

Passwords are stored as HA1 (RFC 2617, section 3.2.2.2): what digest authentication needs, and not the password.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dnat.errors import PlatformError, UsageError

SCHEMAS = Path("/usr/share/kamailio/db_sqlite")
"""Kamailio's own table definitions: they must be those of its version."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")


@dataclass(frozen=True, slots=True)
class Registration:
    """Where a user can be reached now."""

    user: str
    contact: str
    """SIP URI with the phone's combination network address."""
    expires_in: int
    """Seconds."""
    agent: str
    """What the phone calls itself."""


def ensure(users: Path, registrations: Path) -> None:
    """Make the files that are not there. Raises PlatformError."""
    for path, schema in ((users, "auth_db"), (registrations, "usrloc")):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open(path) as database:
            database.execute("PRAGMA journal_mode=WAL")
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'version'").fetchone():
                continue
            try:
                tables = [(SCHEMAS / f"{part}-create.sql").read_text() for part in ("standard", schema)]
            except OSError:
                raise PlatformError(
                    "Kamailio's table definitions are not installed: apt-get install kamailio-sqlite-modules"
                ) from None
            database.executescript("BEGIN;" + "".join(tables) + "COMMIT;")
        path.chmod(0o640)


class Hold:
    """Open connections while Kamailio runs.

    Who is the first to open such a file, and who is the last to close it, locks it for a moment. Kamailio's module does
    not wait for locks: processes of it that start together would meet those of each other, and give up.
    """

    def __init__(self, *paths: Path) -> None:
        """Raises PlatformError."""
        self._connections: list[sqlite3.Connection] = []
        try:
            for path in paths:
                # Threads take turns.
                self._connections.append(sqlite3.connect(path, timeout=5.0, check_same_thread=False))
                self._connections[-1].execute("SELECT COUNT(*) FROM version").fetchone()
        except sqlite3.Error as error:
            self.close()
            raise PlatformError(f"{path}: {error}") from None

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()


def set_user(path: Path, name: str, realm: str, password: str) -> bool:
    """Add a user, or give one a new password; whether the user is new. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f'"{name}" cannot be a user\'s name: letters, digits and ._+- please, 63 at most')
    ha1 = hashlib.md5(f"{name}:{realm}:{password}".encode(), usedforsecurity=False).hexdigest()
    with _open(path) as database:
        changed = database.execute("UPDATE subscriber SET ha1 = ? WHERE username = ?", (ha1, name)).rowcount
        if not changed:
            database.execute("INSERT INTO subscriber (username, domain, ha1) VALUES (?, ?, ?)", (name, realm, ha1))
        database.commit()
    return not changed


def remove_user(path: Path, name: str) -> bool:
    """Whether there was one of that name."""
    with _open(path) as database:
        removed = database.execute("DELETE FROM subscriber WHERE username = ?", (name,)).rowcount
        database.commit()
    return bool(removed)


def users(path: Path) -> list[str]:
    """All names in order."""
    with _open(path) as database:
        return [name for (name,) in database.execute("SELECT username FROM subscriber ORDER BY username")]


def registrations(path: Path) -> list[Registration]:
    """Those that have not expired, by user."""
    query = "SELECT username, contact, CAST(strftime('%s', expires) AS INTEGER), user_agent FROM location ORDER BY 1, 2"
    now = time.time()
    with _open(path) as database:
        found = [
            Registration(user, contact, round(expires - now), agent)
            for user, contact, expires, agent in database.execute(query)
        ]
    return [one for one in found if one.expires_in > 0]


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        database = sqlite3.connect(path, timeout=5.0)
        try:
            yield database
        finally:
            database.close()
    except sqlite3.Error as error:
        raise PlatformError(f"{path}: {error}") from None
