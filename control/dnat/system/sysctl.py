"""Sysctls under /proc/sys, changed only when they differ and written to the journal before.

Keys are paths below /proc/sys (``net/ipv4/ip_forward``), because interface names may contain dots.
"""

from __future__ import annotations

from pathlib import Path

from dnat.errors import PlatformError
from dnat.system.journal import Entry, Journal

KIND = "sysctl"

_ROOT = Path("/proc/sys")


def read(key: str) -> str:
    """The value, white space made uniform; raises PlatformError if this kernel has no such sysctl."""
    try:
        return " ".join((_ROOT / key).read_text(encoding="ascii").split())
    except OSError as error:
        raise PlatformError(f"cannot read the sysctl {key}: {error.strerror}") from error


def ensure(journal: Journal, key: str, value: str | int) -> list[str]:
    """Set the sysctl; returns what was changed, in words."""
    old, new = read(key), str(value)
    if old == new:
        return []
    journal.add(KIND, key, old=old)
    _write(key, new)
    return [f"{key}: {old or 'empty'} → {new or 'empty'}"]


def ensure_at_least(journal: Journal, key: str, value: int) -> list[str]:
    """Like ``ensure``, but a higher value is left alone."""
    return ensure(journal, key, max(value, int(read(key))))


def ensure_forwarding(journal: Journal) -> list[str]:
    """Switch IPv4 forwarding on.

    The kernel resets other settings when ``ip_forward`` changes, in both directions (ip-sysctl: "changes its
    value to default"). They stand before it in the journal, so that they are put back after it.
    """
    key = "net/ipv4/ip_forward"
    if read(key) == "1":
        return []
    interfaces = sorted(path.name for path in (_ROOT / "net/ipv4/conf").iterdir())
    for affected in ("all/accept_redirects", *(f"{name}/forwarding" for name in interfaces)):
        journal.add(KIND, f"net/ipv4/conf/{affected}", old=read(f"net/ipv4/conf/{affected}"))
    return ensure(journal, key, 1)


def ensure_own_source_accepted(journal: Journal, interface: str) -> list[str]:
    """Let packets in whose source is an address of this machine: they come from hosts that share it.

    The kernel applies the larger ``rp_filter`` of ``all`` and the interface. If ``all`` is strict (1), the
    interface is set to loose (2), which lets these packets pass too: so reverse path filtering of no other
    interface changes.
    """
    conf = f"net/ipv4/conf/{interface}"
    rp_filter = 0 if read("net/ipv4/conf/all/rp_filter") == "0" else 2
    return [
        *ensure(journal, f"{conf}/accept_local", 1),
        *ensure(journal, f"{conf}/rp_filter", rp_filter),
    ]


def undo(entry: Entry) -> None:
    """Handler of journal entries of this kind."""
    old: str = entry.facts["old"]
    if (_ROOT / entry.subject).exists() and read(entry.subject) != old:
        _write(entry.subject, old)


def _write(key: str, value: str) -> None:
    try:
        # An empty value needs the line feed: the kernel takes a write of nothing for no write.
        (_ROOT / key).write_text(value + "\n", encoding="ascii")
    except OSError as error:
        raise PlatformError(f"cannot set the sysctl {key} to {value!r}: {error.strerror}") from error
