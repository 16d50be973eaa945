"""AUTH and COOKIE: sealing messages with a key, checking them, and telling fresh ones from repeats (docs/pap.md, 9)."""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Protocol

from dnat.pap.codec import AUTH_HEAD, with_attribute
from dnat.pap.messages import COOKIE_LENGTH, Auth

SECRET_LENGTH = 32
AUTH, COOKIE = 0x8010, 0x8012
HMAC_SHA_256 = 1
_HASHES: dict[int, Callable[[], hashlib._Hash]] = {HMAC_SHA_256: hashlib.sha256}
"""The keyed hash of each algorithm number."""
WINDOW = 60.0
"""Seconds by which the time in a message may differ from the receiver's."""
REPLAY_WIDTH = 256
"""Counters below the highest that are still told apart: datagrams overtake each other."""
COOKIE_HOUR = 3600.0
KEY_CONTEXT = b"dnat PAP 1 key"


class Direction(enum.IntEnum):
    """Who made a message; it is part of what the tag covers."""

    FROM_AGENT = 1
    FROM_SERVER = 2


@dataclass(frozen=True, slots=True)
class Key:
    """A secret that one host and the server share."""

    id: int
    """32 bits, never 0."""
    secret: bytes = field(repr=False)
    algorithm: int = HMAC_SHA_256

    def __post_init__(self) -> None:
        if not 1 <= self.id <= 0xFFFFFFFF:
            raise ValueError(f"not a key identifier: {self.id}")
        if len(self.secret) != SECRET_LENGTH:
            raise ValueError(f"a key has {SECRET_LENGTH} octets, not {len(self.secret)}")
        if self.algorithm not in _HASHES:
            raise ValueError(f"there is no algorithm {self.algorithm}")

    @property
    def label(self) -> str:
        """Eight hexadecimal digits, for people."""
        return f"{self.id:08x}"


@dataclass(frozen=True, slots=True)
class Stamp:
    """When a datagram was made: what keeps it from being good twice."""

    milliseconds: int
    """Since 1970."""
    counter: int


class Stamper:
    """The stamps of one sender for one receiver. Times are seconds since 1970."""

    def __init__(self, wall: float) -> None:
        self._counter = max(0, int(wall * 1e6))

    def correct(self, wall: float) -> None:
        """The clock was wrong. The counter grows all the same, unless the receiver would find it too far ahead."""
        if self._counter > (wall + WINDOW) * 1e6:
            self._counter = 0
        self._counter = max(self._counter, int(wall * 1e6))

    def next(self, wall: float) -> Stamp:
        """For a datagram that is made now."""
        self._counter += 1
        return Stamp(max(0, int(wall * 1e3)), self._counter)


def seal(message: bytes, key: Key, direction: Direction, host: IPv4Address, stamp: Stamp) -> bytes:
    """The message with AUTH as its last attribute. ``host``: the LAN address of the agent at one end."""
    size = _HASHES[key.algorithm]().digest_size
    head = AUTH_HEAD.pack(key.id, key.algorithm, stamp.milliseconds, stamp.counter)
    blank = with_attribute(message, AUTH, head + bytes(size))
    return blank[:-size] + _tag(blank, key, direction, host)


def is_sealed(datagram: bytes, auth: Auth, key: Key, direction: Direction, host: IPv4Address) -> bool:
    """Whether a decoded datagram's AUTH was made with the key, for this direction and host."""
    if auth.key_id != key.id or auth.algorithm != key.algorithm:
        return False
    # AUTH is last, and the tags of all algorithms that are assigned need no padding.
    blank = datagram[: -len(auth.tag)] + bytes(len(auth.tag))
    return hmac.compare_digest(auth.tag, _tag(blank, key, direction, host))


def _tag(blank: bytes, key: Key, direction: Direction, host: IPv4Address) -> bytes:
    covered = bytes([direction, 0, 0, 0]) + host.packed + blank
    return hmac.digest(key.secret, covered, _HASHES[key.algorithm])


class Freshness(enum.Enum):
    """What a counter says about a message."""

    FRESH = enum.auto()
    SEEN = enum.auto()
    OLD = enum.auto()
    """Too far below the highest to tell."""


class ReplayWindow:
    """The counters of one sender that have come (as in RFC 4303, section 3.4.3)."""

    __slots__ = ("_seen", "highest")

    def __init__(self) -> None:
        self.highest = 0
        self._seen = 0

    def look(self, counter: int) -> Freshness:
        """What `note` would find, without noting it."""
        behind = self.highest - counter
        if behind < 0:
            return Freshness.FRESH
        if behind >= REPLAY_WIDTH:
            return Freshness.OLD
        return Freshness.SEEN if self._seen >> behind & 1 else Freshness.FRESH

    def note(self, counter: int) -> Freshness:
        """Whether the counter is fresh; from now on it is not."""
        result = self.look(counter)
        if result is Freshness.FRESH:
            ahead = counter - self.highest
            if ahead > 0:
                self._seen = (self._seen << min(ahead, REPLAY_WIDTH)) & ((1 << REPLAY_WIDTH) - 1) | 1
                self.highest = counter
            else:
                self._seen |= 1 << -ahead
        return result


class CookieJar:
    """Makes and checks cookies; remembers nothing but its secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def make(self, address: IPv4Address, port: int, now: float) -> bytes:
        """The cookie of a source address for the hour of ``now`` (wall clock)."""
        return self._cookie(int(now // COOKIE_HOUR), address, port)

    def is_good(self, cookie: bytes, address: IPv4Address, port: int, now: float) -> bool:
        """Whether the source address was given the cookie in this hour or the one before."""
        hour = int(now // COOKIE_HOUR)
        return any(hmac.compare_digest(cookie, self._cookie(each, address, port)) for each in (hour, hour - 1))

    def _cookie(self, hour: int, address: IPv4Address, port: int) -> bytes:
        told = max(0, hour).to_bytes(8) + address.packed + port.to_bytes(2)
        return hmac.digest(self._secret, told, hashlib.sha256)[:COOKIE_LENGTH]


class Agreement(Protocol):
    """Our half of a key agreement: a key pair that is used once."""

    @property
    def share(self) -> bytes:
        """The public half, 32 octets."""

    def secret(self, their_share: bytes, salt: bytes, context: bytes) -> bytes:
        """The key that both sides derive. Raises ValueError for a share that is none."""


Agree = Callable[[], Agreement]
"""Draws a fresh key pair."""


def key_context(host_id: bytes, agent_share: bytes, server_share: bytes) -> bytes:
    """What a derived key is bound to (docs/pap.md, 9.3)."""
    return KEY_CONTEXT + host_id + agent_share + server_share
