"""The server's clock: that of 1970, but it never jumps.

Leases are told in wall-clock time, because they outlive a boot. If somebody sets the clock an hour ahead, hosts still
go by their own: leases that ended at once would be given to others while they are in use. So the server reads the wall
clock once in a boot, and from there on counts seconds that passed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from dnat import files

log = logging.getLogger(__name__)

JUMP = 5.0
"""Seconds by which the wall clock must differ to be worth a word; less is drift."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boottime() -> float:
    """Seconds since boot, sleep included: times that survive a restart of the daemon and changes of the clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Saved(msgspec.Struct, frozen=True):
    boot: str
    offset: float


class SteadyClock:
    """Call it for the seconds since 1970."""

    def __init__(
        self,
        path: Path | None = None,
        wall: Callable[[], float] = time.time,
        passed: Callable[[], float] = boottime,
        boot: Path = BOOT_ID,
    ) -> None:
        """``path``: where a daemon of the same boot finds the reading; gone after ``down``. ``passed``: since boot."""
        self._wall = wall
        self._passed = passed
        self._offset = _saved_offset(path, boot)
        if self._offset is None:
            self._offset = wall() - passed()
            _save(path, boot, self._offset)
        self._told = 0.0

    def __call__(self) -> float:
        assert self._offset is not None
        return self._passed() + self._offset

    @property
    def behind(self) -> float:
        """Seconds by which the wall clock was set ahead; negative: back."""
        return self._wall() - self()

    def watch(self) -> None:
        """Say so, once, when the wall clock was set."""
        if abs(self.behind - self._told) > JUMP:
            self._told = self.behind
            log.warning(
                "the machine's clock is %+.0f s off the server's, for it was set: leases and keys go on as they were,"
                " until the next boot or `dnatctl down`",
                self._told,
            )


def _saved_offset(path: Path | None, boot: Path) -> float | None:
    if path is None:
        return None
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=_Saved)
        return saved.offset if saved.boot == boot.read_text(encoding="ascii") else None
    except (OSError, ValueError, msgspec.MsgspecError):
        return None


def _save(path: Path | None, boot: Path, offset: float) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, msgspec.json.encode(_Saved(boot.read_text(encoding="ascii"), offset)))
    except OSError as error:
        log.warning("%s cannot be written (%s): a restart of the server will read the clock again", path, error)
