"""The life of one lease as its host sees it: the whole state machine is the table `TRANSITIONS`.

`docs/pap-states.md` is generated from the table: ``python -m dnat.pap.states > docs/pap-states.md``.
"""

from __future__ import annotations

import enum

from dnat.errors import UsageError


class State(enum.Enum):
    """Where a lease is in its life."""

    WANTED = "wanted"
    """Asked for; the host has no ports yet."""
    HELD = "held"
    RENEWING = "renewing"
    """Held, and the server is being asked for more time."""
    REGAINING = "regaining"
    """Held; the server lost its state and is being asked for the same ports anew."""
    RELEASING = "releasing"
    """No longer used; the server is being told so."""
    ENDED = "ended"


class Trigger(enum.Enum):
    """What can happen to a lease."""

    GRANTED = "granted"
    REFUSED = "refused"
    GAVE_UP = "gave up"
    """Nobody answered, and somebody is waiting for the outcome."""
    LEARNED = "learned"
    """A file or the server says that the host holds the lease already."""
    RENEWAL_DUE = "renewal due"
    RENEWED = "renewed"
    DEFERRED = "deferred"
    """The server cannot say now; ask again later."""
    UNKNOWN = "unknown to server"
    EXPIRED = "expired"
    INVALIDATED = "invalidated"
    EPOCH_LOST = "epoch lost"
    RELEASE = "release"
    """The host itself gives the lease up."""
    ACKNOWLEDGED = "acknowledged"


TRANSITIONS: dict[State, dict[Trigger, State]] = {
    State.WANTED: {
        Trigger.GRANTED: State.HELD,
        Trigger.LEARNED: State.HELD,
        Trigger.REFUSED: State.ENDED,
        Trigger.GAVE_UP: State.ENDED,
    },
    State.HELD: {
        Trigger.LEARNED: State.HELD,
        Trigger.RENEWAL_DUE: State.RENEWING,
        Trigger.UNKNOWN: State.ENDED,
        Trigger.EXPIRED: State.ENDED,
        Trigger.INVALIDATED: State.ENDED,
        Trigger.EPOCH_LOST: State.REGAINING,
        Trigger.RELEASE: State.RELEASING,
    },
    State.RENEWING: {
        Trigger.RENEWED: State.HELD,
        Trigger.LEARNED: State.HELD,
        Trigger.DEFERRED: State.HELD,
        Trigger.UNKNOWN: State.ENDED,
        Trigger.EXPIRED: State.ENDED,
        Trigger.INVALIDATED: State.ENDED,
        Trigger.EPOCH_LOST: State.REGAINING,
        Trigger.RELEASE: State.RELEASING,
    },
    State.REGAINING: {
        Trigger.RENEWED: State.HELD,
        Trigger.LEARNED: State.HELD,
        Trigger.DEFERRED: State.REGAINING,
        Trigger.REFUSED: State.ENDED,
        Trigger.EXPIRED: State.ENDED,
        Trigger.INVALIDATED: State.ENDED,
        Trigger.EPOCH_LOST: State.REGAINING,
        Trigger.RELEASE: State.RELEASING,
    },
    State.RELEASING: {
        Trigger.ACKNOWLEDGED: State.ENDED,
        Trigger.GAVE_UP: State.ENDED,
        Trigger.INVALIDATED: State.ENDED,
    },
    State.ENDED: {},
}


class IllegalTransition(UsageError):
    """Something was done to a lease that its state does not allow; the state is as it was."""


def next_state(state: State, trigger: Trigger) -> State:
    """Where the trigger leads. Raises IllegalTransition."""
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise IllegalTransition(f"a lease that is {state.value} cannot be {trigger.value}") from None


def mermaid() -> str:
    """The table as a Mermaid state diagram; transitions between the same two states share an arrow."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.WANTED.value}"]
    for state, triggers in TRANSITIONS.items():
        arrows: dict[State, list[str]] = {}
        for trigger, target in triggers.items():
            arrows.setdefault(target, []).append(trigger.value)
        lines += [f"    {state.value} --> {to.value}: {', '.join(names)}" for to, names in arrows.items()]
    lines.append(f"    {State.ENDED.value} --> [*]")
    return "\n".join(lines)


def document() -> str:
    """The text of ``docs/pap-states.md``."""
    return f"""\
# The life of a lease

As its host sees it. Generated from the table in `control/dnat/pap/states.py` by `python -m dnat.pap.states`;
a unit test compares the two.

```mermaid
{mermaid()}
```
"""


if __name__ == "__main__":
    print(document(), end="")
