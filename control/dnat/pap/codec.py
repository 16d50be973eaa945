"""Messages to octets and back: one table of attributes, every length checked (docs/pap.md, 3 and 4).

`decode` takes any octets and raises nothing but CodecError. `encode` raises ValueError or struct.error for a
message that cannot be said, which is a mistake of its caller.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from dnat.errors import PeerError
from dnat.pap.messages import (
    COOKIE_LENGTH,
    HOST_ID_LENGTH,
    KEY_SHARE_LENGTH,
    MAX_MESSAGE,
    VERSION,
    Auth,
    LeaseInfo,
    Message,
    MessageType,
    Result,
    Want,
)
from dnat.types import Parity, PortRange, members, protocol_of, purpose_of

HEADER = struct.Struct("!BBBxHxxQI")
_LENGTH_AT = 4
_ATTRIBUTE = struct.Struct("!HH")
_WANT = struct.Struct("!HBBBBHI4s")
_LEASE = struct.Struct("!Q4sHHBBxxI")
AUTH_HEAD = struct.Struct("!IHxxQQ")
_UINT32 = struct.Struct("!I")

MANDATORY = 0x8000
"""The bit of an attribute type that forbids skipping it."""
MAX_REASON = 255
FLAG_EXACT = 1
FLAG_SPECIFIC = 2
TAG_LENGTHS = {1: 32}
"""Octets of an AUTH tag by algorithm: 1 is HMAC-SHA-256. Tags of other algorithms have 1 to 64 octets."""
MAX_TAG = 64


class CodecError(PeerError):
    """Octets that are no acceptable message."""

    def __init__(
        self,
        result: Result,
        detail: str,
        *,
        transaction: int | None = None,
        type: int | None = None,
        host_id: bytes | None = None,
        unknown: tuple[int, ...] = (),
    ) -> None:
        super().__init__(detail)
        self.result = result
        """What to answer, if an answer is possible."""
        self.transaction = transaction
        """None when the header could not be read: drop in silence."""
        self.type = type
        """The message type as it stands in the header, known or not; None without a header."""
        self.host_id = host_id
        """HOST-ID, if it came before the mistake."""
        self.unknown = unknown
        """For UNSUPPORTED_ATTRIBUTE: the mandatory types that are not known, in order, each once."""


class _Bad(ValueError):
    """An attribute's value is not what its type allows."""


_parity, _message_type = members(Parity), members(MessageType)


@dataclass(frozen=True, slots=True)
class Attribute:
    """One row of the attribute table."""

    number: int
    name: str
    field: str
    """The field of `Message` that holds it."""
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]
    """Raises ValueError."""
    repeats: bool = False
    """Whether it may appear more than once; the field is then a tuple."""


def _sized(packer: struct.Struct, value: bytes) -> tuple[Any, ...]:
    if len(value) != packer.size:
        raise _Bad(f"{len(value)} octets instead of {packer.size}")
    return packer.unpack(value)


def _octets(length: int) -> Callable[[bytes], bytes]:
    """Packs and unpacks a value that is just so many octets."""

    def check(value: bytes) -> bytes:
        if len(value) != length:
            raise _Bad(f"{len(value)} octets instead of {length}")
        return value

    return check


def _pack_want(want: Want) -> bytes:
    flags = (FLAG_EXACT if want.exact else 0) | (FLAG_SPECIFIC if want.first is not None else 0)
    address = want.address.packed if want.address else bytes(4)
    return _WANT.pack(
        want.count, want.protocol, want.purpose, want.parity, flags, want.first or 0, want.lifetime, address
    )


def _unpack_want(value: bytes) -> Want:
    count, protocol, purpose, parity, flags, first, lifetime, address = _sized(_WANT, value)
    return Want(
        count=count,
        protocol=protocol_of(protocol),
        purpose=purpose_of(purpose),
        parity=_parity(parity),
        exact=bool(flags & FLAG_EXACT),
        first=first if flags & FLAG_SPECIFIC else None,
        lifetime=lifetime,
        address=IPv4Address(address) if any(address) else None,
    )


def _pack_lease(lease: LeaseInfo) -> bytes:
    return _LEASE.pack(
        lease.id,
        lease.address.packed,
        lease.ports.first,
        lease.ports.last,
        lease.protocol,
        lease.purpose,
        lease.lifetime,
    )


def _unpack_lease(value: bytes) -> LeaseInfo:
    number, address, first, last, protocol, purpose, lifetime = _sized(_LEASE, value)
    ports = PortRange(first, last)
    return LeaseInfo(number, IPv4Address(address), ports, protocol_of(protocol), purpose_of(purpose), lifetime)


def _pack_nothing(_: bool) -> bytes:
    return b""


def _unpack_nothing(value: bytes) -> bool:
    if value:
        raise _Bad("not empty")
    return True


def _check_tag(algorithm: int, tag: bytes) -> None:
    expected = TAG_LENGTHS.get(algorithm)
    if len(tag) != expected if expected else not 1 <= len(tag) <= MAX_TAG:
        raise _Bad(f"a tag of {len(tag)} octets for algorithm {algorithm}")


def _pack_auth(auth: Auth) -> bytes:
    _check_tag(auth.algorithm, auth.tag)
    return AUTH_HEAD.pack(auth.key_id, auth.algorithm, auth.timestamp, auth.counter) + auth.tag


def _unpack_auth(value: bytes) -> Auth:
    key_id, algorithm, timestamp, counter = _sized(AUTH_HEAD, value[: AUTH_HEAD.size])
    tag = value[AUTH_HEAD.size :]
    _check_tag(algorithm, tag)
    return Auth(key_id, algorithm, timestamp, counter, tag)


def _pack_reason(reason: str) -> bytes:
    """Text that is too long is cut at a character, and what is no character is a ?: it is for people."""
    return reason.encode(errors="replace")[:MAX_REASON].decode(errors="ignore").encode()


def _unpack_reason(value: bytes) -> str:
    if len(value) > MAX_REASON:
        raise _Bad(f"{len(value)} octets, at most {MAX_REASON}")
    return value.decode()


def _unpack_uint32(value: bytes) -> int:
    return int(_sized(_UINT32, value)[0])


def _pack_types(types: tuple[int, ...]) -> bytes:
    return struct.pack(f"!{len(types)}H", *types)


def _unpack_types(value: bytes) -> tuple[int, ...]:
    if not value or len(value) % 2:
        raise _Bad(f"{len(value)} octets are not a list of types")
    return struct.unpack(f"!{len(value) // 2}H", value)


ATTRIBUTES = (
    Attribute(0x8001, "HOST-ID", "host_id", _octets(HOST_ID_LENGTH), _octets(HOST_ID_LENGTH)),
    Attribute(0x8002, "WANT", "want", _pack_want, _unpack_want),
    Attribute(0x8003, "LEASE", "leases", _pack_lease, _unpack_lease, repeats=True),
    Attribute(0x8004, "RESUME", "resume", _pack_nothing, _unpack_nothing),
    Attribute(0x0005, "REASON", "reason", _pack_reason, _unpack_reason),
    Attribute(0x0006, "RETRY-AFTER", "retry_after", _UINT32.pack, _unpack_uint32),
    Attribute(0x0007, "UNKNOWN-ATTRIBUTES", "unknown", _pack_types, _unpack_types),
    Attribute(0x0008, "NEW-KEY", "new_key", _pack_nothing, _unpack_nothing),
    Attribute(0x8011, "KEY-SHARE", "key_share", _octets(KEY_SHARE_LENGTH), _octets(KEY_SHARE_LENGTH)),
    Attribute(0x8012, "COOKIE", "cookie", _octets(COOKIE_LENGTH), _octets(COOKIE_LENGTH)),
    Attribute(0x8010, "AUTH", "auth", _pack_auth, _unpack_auth),
)
"""In the order in which `encode` writes them."""

_BY_NUMBER = {attribute.number: attribute for attribute in ATTRIBUTES}


def encode(message: Message) -> bytes:
    """The octets of a message. Raises ValueError or struct.error if it cannot be said in a message."""
    body = b""
    for attribute in ATTRIBUTES:
        content = getattr(message, attribute.field)
        if content is None or content is False or content == ():
            continue
        for each in content if attribute.repeats else (content,):
            value = attribute.pack(each)
            body += _ATTRIBUTE.pack(attribute.number, len(value)) + value + bytes(-len(value) % 4)
    length = HEADER.size + len(body)
    if length > MAX_MESSAGE:
        raise ValueError(f"a message of {length} octets, at most {MAX_MESSAGE}")
    head = HEADER.pack(VERSION, message.type, message.result, length, message.transaction, message.epoch)
    return head + body


def with_attribute(message: bytes, number: int, value: bytes) -> bytes:
    """An encoded message with one more attribute at its end. Raises ValueError if it gets too long."""
    more = message + _ATTRIBUTE.pack(number, len(value)) + value + bytes(-len(value) % 4)
    if len(more) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(more)} octets, at most {MAX_MESSAGE}")
    return more[:_LENGTH_AT] + len(more).to_bytes(2) + more[_LENGTH_AT + 2 :]


def decode(datagram: bytes) -> Message:
    """The message in a datagram. Raises CodecError, whatever the octets are."""
    if len(datagram) < HEADER.size:
        raise CodecError(Result.MALFORMED, f"{len(datagram)} octets are no header")
    version, type_number, code, length, transaction, epoch = HEADER.unpack_from(datagram)
    if length != len(datagram):
        raise CodecError(Result.MALFORMED, f"{len(datagram)} octets that say they are {length}")

    fields: dict[str, Any] = {}

    def error(result: Result, detail: str, unknown: tuple[int, ...] = ()) -> CodecError:
        return CodecError(
            result,
            detail,
            transaction=transaction,
            type=type_number,
            host_id=fields.get("host_id"),
            unknown=unknown,
        )

    if version != VERSION:
        raise error(Result.UNSUPPORTED_VERSION, f"version {version}")
    if length > MAX_MESSAGE:
        raise error(Result.MALFORMED, f"{length} octets, at most {MAX_MESSAGE}")
    unknown: dict[int, None] = {}
    try:
        message_type = _message_type(type_number)
        result = Result.from_wire(code)
        position = HEADER.size
        while position < length:
            if length - position < _ATTRIBUTE.size:
                raise _Bad("octets after the last attribute")
            number, size = _ATTRIBUTE.unpack_from(datagram, position)
            start = position + _ATTRIBUTE.size
            position = start + size + -size % 4
            if position > length:
                raise _Bad(f"attribute {number:#06x} ends after the message")
            if "auth" in fields:
                raise _Bad("an attribute after AUTH")
            attribute = _BY_NUMBER.get(number)
            if attribute is not None:
                _collect(fields, attribute, datagram[start : start + size])
            elif number & MANDATORY:
                unknown[number] = None
    except ValueError as problem:
        raise error(Result.MALFORMED, str(problem)) from problem
    if unknown:
        names = ", ".join(f"{number:#06x}" for number in unknown)
        raise error(Result.UNSUPPORTED_ATTRIBUTE, f"unknown mandatory attributes {names}", tuple(unknown))
    return Message(message_type, transaction, result, epoch, **fields)


def _collect(fields: dict[str, Any], attribute: Attribute, value: bytes) -> None:
    try:
        content = attribute.unpack(value)
    except ValueError as problem:
        raise _Bad(f"{attribute.name}: {problem}") from problem
    if attribute.repeats:
        fields[attribute.field] = (*fields.get(attribute.field, ()), content)
    elif attribute.field in fields:
        raise _Bad(f"{attribute.name} appears twice")
    else:
        fields[attribute.field] = content
