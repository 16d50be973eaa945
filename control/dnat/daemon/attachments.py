"""Programs on interfaces, with the journal: what ``down`` has to take off again."""

from __future__ import annotations

from pathlib import Path

from dnat.dataplane import attach, loader
from dnat.system.journal import Entry, Handler, Journal

KIND = "program on an interface"


def ensure_attached(
    journal: Journal, pins: Path, program: str, interface: str, direction: attach.Direction
) -> list[str]:
    """Have a role's pinned program, of our own sources, on an interface; returns what was changed, in words."""
    name = f"dnat_{program}:{loader.source_hash()}"
    if attach.attached(interface, direction) == name:
        return []
    journal.add(
        KIND,
        f"{direction} of {interface}",
        interface=interface,
        direction=direction,
        clsact_added=not attach.has_clsact(interface),
    )
    attach.attach(interface, direction, loader.program_pin(pins, program), name)
    return [f"attached {program} to {direction} of {interface}"]


def undo(entry: Entry) -> None:
    """Handler of journal entries of this kind."""
    attach.detach(entry.facts["interface"], entry.facts["direction"], clsact_added=entry.facts["clsact_added"])


HANDLERS: dict[str, Handler] = {KIND: undo}
