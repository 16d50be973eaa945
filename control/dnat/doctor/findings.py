"""What a check finds, and what checks look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dnat.config import Config
from dnat.instance import Instance

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    """What was looked at, in a word."""
    level: Level
    """``warn``: works, with a limit that is named; ``fail``: does not work."""
    text: str
    advice: str = ""
    """What to do, a sentence; empty where all is well."""

    def document(self) -> dict[str, str]:
        return asdict(self)


def not_tried(check: str) -> Finding:
    """A check that only root can make."""
    return Finding(check, "warn", "not tried: that needs root", "run `sudo dnatctl doctor`")


@dataclass(frozen=True, slots=True)
class Patient:
    """The machine as the checks see it."""

    config: Config
    instance: Instance
    shown: dict[str, Any] | None
    """What the daemon shows of itself (docs/show.md); None when it is not up."""
    is_root: bool

    @property
    def is_host(self) -> bool:
        return "host" in self.config.roles

    @property
    def is_router(self) -> bool:
        return "router" in self.config.roles


Check = Callable[[Patient], Iterator[Finding]]
