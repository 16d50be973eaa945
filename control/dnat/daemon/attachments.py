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
    pin = loader.program_pin(pins, program)
    if attach.runs(interface, direction, pin, name):
        return []
    journal.add(
        KIND,
        f"{direction} of {interface}",
        interface=interface,
        direction=direction,
        pins=str(pins),
        clsact_added=attach.needs_clsact(interface),
    )
    attach.attach(interface, direction, pin, name)
    return [f"attached {program} to {direction} of {interface}"]


def undo(entry: Entry) -> None:
    """Handler of journal entries of this kind."""
    facts = entry.facts
    pins = Path(facts["pins"])
    attach.detach(facts["interface"], facts["direction"], pins=pins, clsact_added=facts["clsact_added"])


HANDLERS: dict[str, Handler] = {KIND: undo}
