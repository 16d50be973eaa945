"""What an agent tells its host."""

from __future__ import annotations

from dataclasses import dataclass

from dnat.pap.auth import Key
from dnat.pap.messages import Result
from dnat.types import Lease


@dataclass(frozen=True, slots=True)
class Granted:
    """A want was granted."""

    ticket: int
    """What `Agent.want` returned."""
    lease: Lease
    fewer: bool
    """The lease has fewer ports than were asked for."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A want was refused; its ticket has ended."""

    ticket: int | None
    """None for the question which leases the host holds."""
    result: Result
    reason: str | None
    """The server's words, for people."""
    retry_after: int | None
    """Seconds to wait before the same want makes sense."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """A lease goes on: its end has moved."""

    lease: Lease
    former_id: int | None = None
    """The identifier that the lease had before, where a server that lost its state granted it anew."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The ports of a lease must not be used any more."""

    lease: Lease
    result: Result | None
    """The server's code; RECLAIMED if the server does not know the lease; None if it expired unanswered."""
    reason: str


@dataclass(frozen=True, slots=True)
class Released:
    """The server has taken note that a lease was given up."""

    lease_id: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """The server's answer to "which leases do I hold?"."""

    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A question has been repeated in vain.

    Renewals go on being asked until the lease expires; anything else is given up.
    """

    ticket: int | None
    """The want that is given up; None for a question that is no want."""
    attempts: int
    """How often the question was sent."""


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """The server could not make durable what it was asked. If there is another server, ask that, and `Agent.hurry`."""


@dataclass(frozen=True, slots=True)
class KeyAgreed:
    """The host has a new key: make it durable before the agent's next datagram leaves."""

    key: Key


@dataclass(frozen=True, slots=True)
class EpochLost:
    """The server has lost its state; the agent asks it for the same ports anew."""


Event = Granted | Refused | Renewed | Lost | Released | Resumed | Unanswered | StoreFailed | KeyAgreed | EpochLost
