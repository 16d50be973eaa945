"""Which calls are made by which phones, as data; ``python tests/netns/call_matrix.py`` prints the table of the docs.

Every pair of values of two columns occurs in some call, except those that ``impossible`` names. The full product would
be 648 calls; faults that need three particular values at once are rarer than the time is worth.
"""

from __future__ import annotations

import itertools
from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True)
class Case:
    """One call."""

    way: str
    """``out``: from a phone behind the shared address; ``in``: to one; ``inside``: both are behind it."""
    path: str
    """``direct`` to the combination network address, through the ``proxy``, or by the ``redirect`` server's answer."""
    transport: str
    media: str
    caller: str
    callee: str
    deed: str
    """What happens before the caller hangs up. ``transfer``: the callee sends the caller to a third phone."""

    def __str__(self) -> str:
        return "-".join(astuple(self))


VALUES = {
    "way": ("out", "in", "inside"),
    "path": ("direct", "proxy", "redirect"),
    "transport": ("udp", "tcp", "tls"),
    "media": ("none", "sdes", "dtls"),
    "caller": ("baresip", "linphone"),
    "callee": ("baresip", "linphone"),
    "deed": ("talk", "hold", "cancel", "transfer"),
}

CASES = (
    Case("out", "direct", "tls", "none", "baresip", "baresip", "cancel"),
    Case("inside", "direct", "tcp", "sdes", "baresip", "baresip", "hold"),
    Case("inside", "direct", "udp", "sdes", "linphone", "linphone", "hold"),
    Case("inside", "direct", "udp", "none", "linphone", "linphone", "talk"),
    Case("in", "direct", "tcp", "dtls", "linphone", "linphone", "transfer"),
    Case("inside", "proxy", "tcp", "none", "baresip", "baresip", "cancel"),
    Case("in", "proxy", "tls", "none", "linphone", "linphone", "hold"),
    Case("inside", "proxy", "tls", "dtls", "linphone", "linphone", "hold"),
    Case("in", "proxy", "tls", "sdes", "baresip", "baresip", "talk"),
    Case("out", "proxy", "tcp", "none", "linphone", "baresip", "talk"),
    Case("out", "proxy", "udp", "sdes", "baresip", "linphone", "transfer"),
    Case("in", "redirect", "udp", "none", "linphone", "linphone", "cancel"),
    Case("out", "redirect", "tcp", "sdes", "linphone", "baresip", "hold"),
    Case("out", "redirect", "udp", "dtls", "linphone", "baresip", "talk"),
    Case("inside", "redirect", "tls", "none", "baresip", "baresip", "transfer"),
)


def impossible(case: Case) -> str | None:
    """Why a combination cannot be, None if it can."""
    if case.callee == "linphone" and case.transport == "tls" and case.path != "proxy":
        return "linphone takes TLS connections from nobody; it is reached over the one that it has with its proxy"
    if case.deed == "cancel" and case.media != "none":
        return "there is no media before the answer"
    if case.media == "dtls" and case.caller == "baresip":
        return "baresip 1.0.0 loses a race now and then: test_a_direct_call_with_dtls"
    if case.callee == "linphone" and case.transport == "tcp" and case.path == "redirect":
        return "linphone registers the port of its connection, which nobody else can call"
    return None


def everything() -> list[Case]:
    return [case for values in itertools.product(*VALUES.values()) if not impossible(case := Case(*values))]


def pairs(case: Case) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    """Each two columns with their values."""
    # A call without an answer shows nothing of media.
    shown = [field.name for field in fields(case) if not (case.deed == "cancel" and field.name == "media")]
    named = [(name, getattr(case, name)) for name in shown]
    return set(itertools.combinations(named, 2))


def table() -> str:
    """For the documentation."""
    names = [field.name for field in fields(Case)]
    rows = [names, ["---"] * len(names), *(list(astuple(case)) for case in CASES)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    print(table(), end="")
