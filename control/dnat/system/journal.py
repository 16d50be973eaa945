"""What dnat changed on this machine, written down before it is changed, so that it can be put back.

The journal is a small JSON file. It is durable before a change is made, so ``down`` after SIGKILL or a crash
is the same code as ``down`` of a living daemon. Each entry names one thing (``kind`` and ``subject``) and
keeps what it was like before the first change: a later change of the same thing is not written again.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dnat import files
from dnat.errors import PlatformError

_FORMAT = 1
_SO_NETNS_COOKIE = 71


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was changed."""

    kind: str
    """Selects the handler that undoes it."""
    subject: str
    """What was changed, in words that a person understands; with ``kind`` it is the entry's identity."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the handler needs, as JSON values."""


Handler = Callable[[Entry], None]
"""Puts one thing back. Succeeds if it is back already or gone; raises DnatError or OSError if it cannot."""


class Journal:
    """The changes made in one network namespace. Not for use from several threads at once."""

    def __init__(self, path: Path) -> None:
        """Read the journal at ``path`` if there is one; raises PlatformError if it cannot be understood.

        A journal of a namespace that is gone (same name, made anew, or before a reboot) describes nothing
        any more: it counts as empty.
        """
        self._path = path
        self._namespace = _namespace_identity()
        self._entries = _load(path, self._namespace)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """In the order of the changes."""
        return tuple(self._entries)

    def find(self, kind: str, subject: str) -> Entry | None:
        return next((e for e in self._entries if e.kind == kind and e.subject == subject), None)

    def add(self, kind: str, subject: str, **facts: Any) -> bool:
        """Write down a change that is about to be made; False if the same thing was changed before."""
        if self.find(kind, subject):
            return False
        self._entries.append(Entry(kind, subject, facts))
        self._write()
        return True

    def renew(self, kind: str, subject: str, **facts: Any) -> None:
        """Write down a change of something that somebody else has changed since it was changed first."""
        self._entries = [
            Entry(kind, subject, facts) if (e.kind, e.subject) == (kind, subject) else e for e in self._entries
        ]
        if not self.add(kind, subject, **facts):
            self._write()

    def forget(self, kind: str, subject: str) -> None:
        """Strike out an entry that has just been undone on its own."""
        remaining = [e for e in self._entries if (e.kind, e.subject) != (kind, subject)]
        if len(remaining) != len(self._entries):
            self._entries = remaining
            self._write()

    def rename_interface(self, old: str, new: str) -> None:
        """The interface that was called ``old`` when things of it were changed is called ``new`` now."""
        self._entries = [
            replace(
                entry,
                subject=re.sub(rf"(?<![^/ ]){re.escape(old)}(?![^/ ])", lambda _: new, entry.subject),
                facts=entry.facts | ({"interface": new} if entry.facts.get("interface") == old else {}),
            )
            for entry in self._entries
        ]
        self._write()

    def undo(self, handlers: Mapping[str, Handler]) -> list[str]:
        """Put everything back, last change first; returns a sentence for each thing that could not be.

        What could not be put back stays in the journal for another attempt; otherwise the file goes away.
        """
        problems: list[str] = []
        remaining: list[Entry] = []
        for entry in reversed(self._entries):
            handler = handlers.get(entry.kind)
            try:
                if handler is None:
                    raise PlatformError(f"this version does not know how to undo {entry.kind!r}")
                handler(entry)
            except (PlatformError, OSError) as error:
                problems.append(f"could not put back {entry.subject}: {error}")
                remaining.insert(0, entry)
        self._entries = remaining
        if remaining:
            self._write()
        else:
            self._path.unlink(missing_ok=True)
        return problems

    def _write(self) -> None:
        content = {
            "format": _FORMAT,
            "namespace": self._namespace,
            "entries": [asdict(entry) for entry in self._entries],
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.replace(self._path, json.dumps(content, indent=1).encode(), durable=True)
        except OSError as error:
            raise PlatformError(f"cannot write {self._path}, so nothing was changed: {error.strerror}") from error


def _load(path: Path, namespace: str) -> list[Entry]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}")
        if content["namespace"] != namespace:
            return []
        return [Entry(e["kind"], e["subject"], e["facts"]) for e in content["entries"]]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlatformError(
            f"{path} cannot be understood ({error}), so what dnat changed here cannot be put back by itself; "
            "look at addresses, routes and sysctls, then delete the file"
        ) from error


def _namespace_identity() -> str:
    """A name of the calling thread's network namespace that is never used again, not even after a reboot."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            cookie = int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
        except OSError:  # Linux before 5.14
            cookie = Path("/proc/thread-self/ns/net").stat().st_ino
    return f"{boot}/{cookie}"
