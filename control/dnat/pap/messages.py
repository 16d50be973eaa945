"""PAP's messages as values (docs/pap.md, 3 to 6), and its numbers that are no attribute's."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address

from dnat.leases.records import Want
from dnat.types import PortRange, Protocol, Purpose

__all__ = [
    "AGENT_PORT",
    "COOKIE_LENGTH",
    "HOST_ID_LENGTH",
    "KEY_SHARE_LENGTH",
    "MAX_LEASES",
    "MAX_MESSAGE",
    "PERMANENT",
    "SERVER_PORT",
    "VERSION",
    "Auth",
    "Fault",
    "LeaseInfo",
    "Message",
    "MessageType",
    "Result",
    "Want",
]

VERSION = 1
SERVER_PORT = 5727
AGENT_PORT = 5728
MAX_MESSAGE = 1200
"""Octets; such a datagram never fragments."""
MAX_LEASES = 32
"""Leases that a message is filled with; with every other attribute they stay below MAX_MESSAGE."""
PERMANENT = 0xFFFFFFFF
"""Seconds of a lease that does not expire: 136 years."""
HOST_ID_LENGTH = 16
KEY_SHARE_LENGTH = 32
COOKIE_LENGTH = 16


class MessageType(enum.IntEnum):
    """The numbers are those of draft-borella-aatn-dnat-01."""

    REQUEST = 0
    RESPONSE = 1
    INVALIDATE = 2
    RELEASE = 3
    ACK = 8
    ANNOUNCE = 9
    """Ours, not the drafts'."""


class Fault(enum.Enum):
    """Who is to blame for a result."""

    NONE = "none"
    REQUESTER = "requester"
    NOBODY = "nobody"
    SERVER = "server"


class Result(enum.IntEnum):
    """Result codes; the high nibble says who is at fault (docs/pap.md, 6)."""

    SUCCESS = 0
    FEWER = 1
    MALFORMED = 16
    UNSUPPORTED_VERSION = 17
    UNSUPPORTED_ATTRIBUTE = 18
    NOT_AUTHORIZED = 19
    OUTSIDE_POOL = 20
    QUOTA_EXCEEDED = 21
    KEY_REQUIRED = 22
    STALE = 23
    COOKIE_REQUIRED = 24
    POOL_EXHAUSTED = 32
    PORT_TAKEN = 33
    PORT_HELD = 34
    STORE_FAILED = 48
    BUSY = 49
    SHUTTING_DOWN = 50
    ADMINISTRATIVE = 64
    ADDRESS_CHANGED = 65
    NOT_OWNER = 66
    RECLAIMED = 67

    @property
    def label(self) -> str:
        """Lower-case name with hyphens, for people and counters."""
        return self.name.lower().replace("_", "-")

    @property
    def ok(self) -> bool:
        return self < 16

    @property
    def fault(self) -> Fault:
        return _FAULTS[self >> 4]

    @property
    def retry(self) -> bool:
        """Whether the same question, unchanged, may have another answer later."""
        return self.fault in (Fault.NOBODY, Fault.SERVER)

    @classmethod
    def from_wire(cls, code: int) -> Result:
        """The result of a code; one that this version does not know counts as the first of its nibble.

        Raises ValueError where the nibble is unknown, too.
        """
        known = _RESULTS.get(code)
        return cls(code & 0xF0) if known is None else known


_RESULTS = {int(result): result for result in Result}
_FAULTS = {0: Fault.NONE, 1: Fault.REQUESTER, 2: Fault.NOBODY, 3: Fault.SERVER, 4: Fault.NOBODY}


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """A lease as a message speaks of it (docs/pap.md, 4.2)."""

    id: int
    """64 bits; 0 names ports and no lease."""
    address: IPv4Address
    """External address."""
    ports: PortRange
    protocol: Protocol
    purpose: Purpose
    lifetime: int
    """Seconds left; 0 says it has ended, or in a request to renew "as you like"."""


@dataclass(frozen=True, slots=True)
class Auth:
    """Keyed authentication (docs/pap.md, 4.3)."""

    key_id: int
    """32 bits."""
    algorithm: int
    """16 bits; see `TAG_LENGTHS` in `dnat.pap.codec`."""
    timestamp: int
    """Milliseconds since 1970."""
    counter: int
    """64 bits, greater in each datagram of a sender."""
    tag: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """One PAP message."""

    type: MessageType
    transaction: int
    """64 random bits of whoever started the exchange."""
    result: Result = Result.SUCCESS
    epoch: int = 0
    """Age of the server's lease state in seconds; 0 in messages of an agent."""
    host_id: bytes | None = None
    """16 octets; None only where the sender cannot know it."""
    want: Want | None = None
    leases: tuple[LeaseInfo, ...] = ()
    resume: bool = False
    """"Which leases do I hold?"."""
    reason: str | None = None
    """For people, at most 255 octets of UTF-8."""
    retry_after: int | None = None
    """Seconds to wait before the same question makes sense."""
    unknown: tuple[int, ...] = ()
    """Mandatory attribute types that the answerer did not understand."""
    new_key: bool = False
    """"Agree on a new key with me"."""
    key_share: bytes | None = None
    """X25519 public key (docs/pap.md, 9.3)."""
    cookie: bytes | None = None
    """Shows that the sender is where its source address says (docs/pap.md, 9.4)."""
    auth: Auth | None = None
