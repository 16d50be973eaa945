"""The server's guard: who asks, may he, and is there time for it (docs/pap.md, 9).

Pure. The server shows it every question before it acts on one, and has it seal every message that leaves.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from dnat.pap.answers import Destination
from dnat.pap.auth import (
    AUTH,
    COOKIE,
    WINDOW,
    Agree,
    CookieJar,
    Direction,
    Freshness,
    Key,
    ReplayWindow,
    Stamper,
    is_sealed,
    key_context,
    seal,
)
from dnat.pap.codec import AUTH_HEAD, TAG_LENGTHS
from dnat.pap.keyring import MAX_KEYS, DropKey, KeyChange, KeyRecord, Keyring, KeyState
from dnat.pap.limits import Bucket, Buckets, Rate
from dnat.pap.messages import COOKIE_LENGTH, Auth, Message, Result

UNSEEN_AGREEMENT = 60.0
"""Seconds for which an agreed key that was never used is replaced only from the address that asked for it."""
MAX_AGREEMENTS = 4096
SEALED_TAIL = 4 + AUTH_HEAD.size + 32
"""Octets of an AUTH with HMAC-SHA-256."""
_AUTH_START = AUTH.to_bytes(2) + (SEALED_TAIL - 4).to_bytes(2)
_COOKIE_START = COOKIE.to_bytes(2) + COOKIE_LENGTH.to_bytes(2)


class Mode(enum.Enum):
    """What becomes of a host that has no key."""

    OPEN = "open"
    TOFU = "tofu"
    STRICT = "strict"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the server does for whom."""

    unverified: Rate = field(default=Rate(2000, 2000))
    """Answers to senders that have shown neither key nor cookie, all together."""
    host: Rate = field(default=Rate(20, 100))
    """Questions of one host."""
    leases: Rate = field(default=Rate(2000, 4000))
    """New leases of all hosts."""


@dataclass(frozen=True, slots=True)
class Passed:
    """The question may be acted on."""

    key: Key | None = None
    """What it was sealed with; the answer is, too."""
    changes: tuple[KeyChange, ...] = ()
    """To be durable before the answer leaves."""
    new_key: bool = False
    """The host is to agree on a new key."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The question is answered without being acted on."""

    result: Result
    counter: str
    key: Key | None = None
    """What to seal the answer with."""
    cookie: bytes | None = None
    retry_after: int | None = None
    reason: str | None = None
    shared: bool = True
    """The answer takes from the allowance that all unverified senders share."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """The message gets no answer."""

    counter: str


Verdict = Passed | Refused | Dropped


@dataclass(frozen=True, slots=True)
class Agreed:
    """A key agreement that came to an end."""

    key: Key
    share: bytes
    """Our half, for the host."""
    changes: tuple[KeyChange, ...] = field(default=())


class Guard:
    """What stands before a server."""

    def __init__(
        self,
        mode: Mode,
        keyring: Keyring,
        cookie_secret: bytes,
        agree: Agree,
        now: float,
        limits: Limits | None = None,
    ) -> None:
        """``now``: nothing that was made before is fresh."""
        limits = limits or Limits()
        self.mode = mode
        self.keyring = keyring
        self._cookies = CookieJar(cookie_secret)
        self._agree = agree
        self._started = now
        self._stampers: dict[int, Stamper] = {}
        self._windows: dict[int, ReplayWindow] = {}
        self._unverified = Bucket(limits.unverified, now)
        self._hosts = Buckets(limits.host)
        self._told_busy = Buckets(Rate(1, 1))
        self._leases = Bucket(limits.leases, now)
        self._used: dict[bytes, int] = {}
        self._agreements: OrderedDict[bytes, tuple[IPv4Address, float]] = OrderedDict()

    def is_worth_reading(self, datagram: bytes, source: Destination, now: float) -> bool:
        """A glance before decoding: under a flood, only what ends with a known key or a good cookie is looked at."""
        if self._unverified.has(now):
            return True
        tail = datagram[-SEALED_TAIL:]
        if tail.startswith(_AUTH_START):
            return int.from_bytes(tail[4:8]) in self.keyring
        cookie = datagram[-COOKIE_LENGTH:]
        is_cookie = datagram[-COOKIE_LENGTH - 4 : -COOKIE_LENGTH] == _COOKIE_START
        return is_cookie and self._cookies.is_good(cookie, *source, now)

    def admit(self, datagram: bytes, message: Message, source: Destination, now: float) -> Verdict:
        """Decide about a question, which is a REQUEST or RELEASE with HOST-ID."""
        if message.auth is None:
            verdict = self._without_key(message, source, now)
        else:
            verdict = self._with_key(datagram, message, source[0], now)
        if isinstance(verdict, Refused) and verdict.shared and not self._unverified.take(now):
            return Dropped("unverified-above-rate")
        return verdict

    def admit_ack(self, datagram: bytes, message: Message, source: IPv4Address, host_id: bytes | None) -> str | None:
        """Why an ACK for an INVALIDATE that went to a host does not count; None if it does."""
        keys = self.keyring.of_host(host_id) if host_id is not None else ()
        if not keys:
            return None
        auth = message.auth
        if auth is None:
            return "ack-without-key"
        for record in keys:
            if is_sealed(datagram, auth, record.key, Direction.FROM_AGENT, source):
                return None
        return "bad-tag"

    def key_of_unread(self, datagram: bytes, source: IPv4Address) -> Key | None:
        """The key that a datagram is sealed with which could not be read; None if it is not, or not well."""
        tail = datagram[-SEALED_TAIL:]
        if len(datagram) < SEALED_TAIL or not tail.startswith(_AUTH_START):
            return None
        key_id, algorithm, timestamp, counter = AUTH_HEAD.unpack_from(tail, 4)
        auth = Auth(key_id, algorithm, timestamp, counter, tail[4 + AUTH_HEAD.size :])
        record = self.keyring.get(auth.key_id)
        if record is None or not record.good:
            return None
        return record.key if is_sealed(datagram, auth, record.key, Direction.FROM_AGENT, source) else None

    def admit_lease(self, now: float) -> bool:
        """Whether there is time for one more lease."""
        return self._leases.take(now)

    def may_answer_unread(self, now: float) -> bool:
        """Whether a message that could not be read may be told so."""
        return self._unverified.take(now)

    def agree(self, message: Message, key: Key | None, source: IPv4Address, now: float) -> Agreed | Refused:
        """Agree on a key with a host whose question was admitted."""
        assert message.host_id is not None and message.key_share is not None
        host_id = message.host_id
        former = self.keyring.of_host(host_id)
        if key is None and (refused := self._first_agreement_refused(former, host_id, source, now)):
            return refused
        if len(self.keyring) >= MAX_KEYS:
            return Refused(Result.BUSY, "keyring-full", key, retry_after=60)
        ours = self._agree()
        context = key_context(host_id, message.key_share, ours.share)
        try:
            secret = ours.secret(message.key_share, key.secret if key else b"", context)
        except ValueError as error:
            return Refused(Result.MALFORMED, "bad-key-share", key, reason=str(error))
        key_id = self.keyring.new_id()
        name = former[-1].name if former else str(source)
        changes = self.keyring.agree(secret, key_id, name, host_id, now)
        self._agreements[host_id] = (source, now)
        self._agreements.move_to_end(host_id)
        if len(self._agreements) > MAX_AGREEMENTS:
            self._agreements.popitem(last=False)
        return Agreed(Key(key_id, secret), ours.share, changes)

    @property
    def next_deadline(self) -> float | None:
        """When `expire` will have something to do."""
        return self.keyring.next_deadline

    def expire(self, now: float) -> tuple[KeyChange, ...]:
        """Forget keys whose time has come."""
        changes = self.keyring.expire(now)
        for change in changes:
            if isinstance(change, DropKey):
                self._windows.pop(change.id, None)
                self._stampers.pop(change.id, None)
        return changes

    def key_of(self, host_id: bytes | None) -> Key | None:
        """The key that a host used last; None for a host without one."""
        if host_id is None:
            return None
        keys = [each for each in self.keyring.of_host(host_id) if each.state is not KeyState.NEW]
        if not keys:
            return None
        used = self._used.get(host_id)
        return next((each.key for each in keys if each.key.id == used), keys[-1].key)

    def seal(self, message: bytes, key: Key | None, host: IPv4Address, now: float) -> bytes:
        """The datagram for a message to a host."""
        if key is None:
            return message
        stamper = self._stampers.get(key.id)
        if stamper is None:
            stamper = self._stampers[key.id] = Stamper(now)
        return seal(message, key, Direction.FROM_SERVER, host, stamper.next(now))

    # Without a key

    def _without_key(self, message: Message, source: Destination, now: float) -> Verdict:
        assert message.host_id is not None
        keys = self.keyring.of_host(message.host_id)
        firm = any(each.state is not KeyState.NEW or not each.agreed for each in keys)
        cookie = self._cookies.make(*source, now)
        offer = message.key_share is not None
        if firm:
            result = Result.NOT_AUTHORIZED if offer or not any(each.good for each in keys) else Result.KEY_REQUIRED
            return Refused(result, "key-missing", cookie=cookie, reason="this host has a key" if offer else None)
        if self.mode is Mode.STRICT:
            result = Result.NOT_AUTHORIZED if offer else Result.KEY_REQUIRED
            return Refused(result, "key-missing", cookie=cookie)
        if self.mode is Mode.TOFU and not offer:
            return Refused(Result.KEY_REQUIRED, "key-missing", cookie=cookie)
        if message.cookie is None:
            return Refused(Result.COOKIE_REQUIRED, "cookie-missing", cookie=cookie)
        if not self._cookies.is_good(message.cookie, *source, now):
            return Refused(Result.COOKIE_REQUIRED, "cookie-wrong", cookie=cookie)
        return Passed() if self._hosts.take(source[0], now) else self._busy(source[0], None, now)

    def _first_agreement_refused(
        self, former: tuple[KeyRecord, ...], host_id: bytes, source: IPv4Address, now: float
    ) -> Refused | None:
        """Whether a key that was never used may be replaced: its host may not have heard the answer."""
        if any(each.state is not KeyState.NEW or not each.agreed for each in former):
            return Refused(Result.NOT_AUTHORIZED, "key-missing", reason="this host has a key")
        asked = self._agreements.get(host_id)
        if former and asked is not None and asked[0] != source and now < asked[1] + UNSEEN_AGREEMENT:
            return Refused(Result.BUSY, "agreement-elsewhere", retry_after=int(UNSEEN_AGREEMENT))
        return None

    # With a key

    def _with_key(self, datagram: bytes, message: Message, source: IPv4Address, now: float) -> Verdict:
        auth = message.auth
        assert auth is not None and message.host_id is not None
        record = self.keyring.get(auth.key_id)
        if record is None or not record.good:
            return Refused(Result.NOT_AUTHORIZED, "unknown-key" if record is None else "revoked-key")
        key = record.key
        if auth.algorithm != key.algorithm:
            counter = "wrong-algorithm" if auth.algorithm in TAG_LENGTHS else "unknown-algorithm"
            return Refused(Result.NOT_AUTHORIZED, counter)
        if not is_sealed(datagram, auth, key, Direction.FROM_AGENT, source):
            return Dropped("bad-tag")
        latest = int((now + WINDOW) * 1e6)
        window = self._windows.setdefault(key.id, ReplayWindow())
        if window.highest > latest:
            # Our clock was set back: begin anew, with what is made from now on.
            window = self._windows[key.id] = ReplayWindow()
            self._started = now
        freshness = window.look(auth.counter)
        if freshness is Freshness.SEEN:
            return Dropped("replayed")
        made = auth.timestamp / 1000
        untimely = abs(made - now) > WINDOW or made < self._started or auth.counter > latest
        if freshness is Freshness.OLD or untimely:
            return Refused(Result.STALE, "stale", key)
        window.note(auth.counter)
        # From here on the host itself has just asked; before, a stranger may have repeated its words.
        if not self._hosts.take(key.id, now):
            return self._busy(key.id, key, now)
        if record.host_id not in (None, message.host_id) or self._is_taken(record, message.host_id):
            reason = "this key belongs to another host"
            return Refused(Result.NOT_AUTHORIZED, "foreign-key", key, reason=reason, shared=False)
        self._used[message.host_id] = key.id
        changes = self.keyring.used(key.id, message.host_id, now)
        record = self.keyring.get(key.id) or record
        return Passed(key, changes, record.replace and record.state is KeyState.ACTIVE)

    def _is_taken(self, record: KeyRecord, host_id: bytes) -> bool:
        """Whether a key that has no host yet comes with the identity of a host that has a key of its own."""
        keys = self.keyring.of_host(host_id) if record.host_id is None else ()
        return any(each.state is not KeyState.NEW for each in keys)

    # Too much

    def _busy(self, who: Hashable, key: Key | None, now: float) -> Verdict:
        if not self._told_busy.take(who, now):
            return Dropped("host-above-rate")
        return Refused(Result.BUSY, "host-above-rate", key, retry_after=1, shared=False)
