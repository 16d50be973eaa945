"""What an agent shows its server, and what it believes (docs/pap.md, 9)."""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv4Address

from dnat.pap.auth import (
    COOKIE,
    WINDOW,
    Agree,
    Agreement,
    Direction,
    Key,
    Stamper,
    is_sealed,
    key_context,
    seal,
)
from dnat.pap.codec import with_attribute
from dnat.pap.memory import remember
from dnat.pap.messages import Auth, Message, Result

FORMER_KEPT = 120.0
"""Seconds for which messages with the key before this one are believed."""
OFFER_AGAIN = 60.0
"""Seconds before a key agreement that failed is tried again."""


class Credentials:
    """A host's key, cookie and clock as its server sees them."""

    def __init__(
        self, address: IPv4Address, wall_offset: float, key: Key | None = None, agree: Agree | None = None
    ) -> None:
        """``wall_offset``: seconds from the agent's clock to 1970's; ``agree``: None never offers a key."""
        self.address = address
        """The host's LAN address."""
        self.key = key
        self.cookie: bytes | None = None
        self._former: tuple[Key, float] | None = None
        self._agree = agree
        self._ours: Agreement | None = None
        self._offer_again_at = float("-inf")
        self._wall_offset = wall_offset
        self._stamper: Stamper | None = None
        self._first: float | None = None
        """When the first authentic answer since the start was made, on the servers' clock; None before it came."""
        self._last = 0.0
        """When the last one was made."""
        self._last_came_at = 0.0
        self._seen: OrderedDict[int, None] = OrderedDict()
        """Counters of what answers nothing."""

    # Sending

    def seal(self, message: bytes, now: float) -> bytes:
        """The datagram for a message to the server."""
        if self.key is not None:
            wall = now + self._wall_offset
            self._stamper = self._stamper or Stamper(wall)
            return seal(message, self.key, Direction.FROM_AGENT, self.address, self._stamper.next(wall))
        return with_attribute(message, COOKIE, self.cookie) if self.cookie is not None else message

    def correct_clock(self, auth: Auth, now: float) -> None:
        """Go by the server's clock from now on: an authentic answer said that ours is wrong."""
        self._wall_offset = auth.timestamp / 1000 - now
        if self._stamper is not None:
            self._stamper.correct(now + self._wall_offset)

    # Receiving

    def doubt(self, datagram: bytes, message: Message, now: float) -> str | None:
        """Why a decoded message is not believed to be the server's; None if it is."""
        auth = message.auth
        if self.key is None:
            return None if auth is None else "unknown-key"
        if auth is None:
            return "without-auth"
        keys = [self.key]
        if self._former is not None and now < self._former[1]:
            keys.append(self._former[0])
        for key in keys:
            if key.id == auth.key_id:
                good = is_sealed(datagram, auth, key, Direction.FROM_SERVER, self.address)
                return None if good else "bad-tag"
        return "unknown-key"

    def doubt_fresh(self, auth: Auth | None) -> str | None:
        """Why an authentic message that answers nothing may be an old one; None if it is fresh.

        Its time tells, and not its counter: of several servers with one store each counts by itself.
        """
        if self.key is None or auth is None:
            return None
        if self._first is None:
            return "freshness-unknown"
        if auth.timestamp / 1000 < max(self._first, self._last - WINDOW) or auth.counter in self._seen:
            return "replayed"
        remember(self._seen, auth.counter)
        return None

    def learn(self, message: Message, asked_at: float, now: float) -> bool:
        """Take from an answer what makes questions better; whether this one should be asked again at once."""
        self.heard(message.auth, asked_at, now)
        if message.cookie is not None and self.key is None:
            self.cookie = message.cookie
        if message.result is Result.STALE and message.auth is not None:
            self.correct_clock(message.auth, now)
            return True
        return message.result is Result.COOKIE_REQUIRED and message.cookie is not None

    def is_asked_for_new_key(self, message: Message) -> bool:
        """Whether the server wants another key in place of the one that it answered with."""
        same = self.key is not None and message.auth is not None and message.auth.key_id == self.key.id
        return message.new_key and same

    def heard(self, auth: Auth | None, asked_at: float, now: float) -> None:
        """An authentic answer came to a question of ours, so it was made just now: what was made long before is old."""
        if auth is None:
            return
        made = auth.timestamp / 1000
        if asked_at >= self._last_came_at:
            # A server whose clock was set back counts from there on.
            self._first = made if self._first is None else min(self._first, made)
            self._last = made
            self._last_came_at = now

    # Agreeing on a key

    @property
    def agreeing(self) -> bool:
        return self._ours is not None

    def may_offer(self, now: float) -> bool:
        """Whether a key agreement may be started."""
        return self._agree is not None and self._ours is None and now >= self._offer_again_at

    def offer(self, now: float) -> bytes:
        """Start an agreement; returns our share."""
        assert self._agree is not None
        self._offer_again_at = now + OFFER_AGAIN
        self._ours = self._agree()
        return self._ours.share

    def give_up_offer(self) -> None:
        """The agreement came to nothing."""
        self._ours = None

    def conclude(self, datagram: bytes, message: Message, now: float) -> Key | None:
        """The key that an answer with a KEY-SHARE makes; None if the answer is not from who shares it."""
        auth, ours = message.auth, self._ours
        if auth is None or ours is None or message.key_share is None or message.host_id is None:
            return None
        context = key_context(message.host_id, ours.share, message.key_share)
        try:
            key = Key(auth.key_id, ours.secret(message.key_share, self.key.secret if self.key else b"", context))
        except ValueError:
            return None
        if not is_sealed(datagram, auth, key, Direction.FROM_SERVER, self.address):
            return None
        if self.key is not None:
            self._former = (self.key, now + FORMER_KEPT)
        self.key, self._ours, self._offer_again_at = key, None, now
        return key
