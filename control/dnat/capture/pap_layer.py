"""PAP for scapy: ``IP()/UDP()/PAP(type="REQUEST", attributes=[PAPResume()])``, and dissection.

Written from docs/pap.md, apart from `dnat.pap.codec`, so that each checks the other.
"""

# mypy: disallow-subclassing-any=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any, ClassVar

from scapy.fields import (
    ByteEnumField,
    ByteField,
    FieldLenField,
    FieldListField,
    FlagsField,
    IntField,
    IPField,
    LongField,
    PacketListField,
    PadField,
    ShortField,
    StrLenField,
    XByteField,
    XIntField,
    XLongField,
    XShortEnumField,
    XShortField,
    XStrLenField,
)
from scapy.layers.inet import UDP
from scapy.packet import Packet, bind_layers

from dnat.pap.messages import (
    AGENT_PORT,
    COOKIE_LENGTH,
    HOST_ID_LENGTH,
    KEY_SHARE_LENGTH,
    SERVER_PORT,
    MessageType,
    Result,
)
from dnat.types import Parity, Protocol, Purpose

TYPES = {each.value: each.name for each in MessageType}
RESULTS = {each.value: each.name for each in Result}
PROTOCOLS = {each.value: each.label for each in Protocol}
PURPOSES = {each.value: each.label for each in Purpose}
PARITIES = {each.value: each.label for each in Parity}
ATTRIBUTES = {
    0x8001: "HOST-ID",
    0x8002: "WANT",
    0x8003: "LEASE",
    0x8004: "RESUME",
    0x8010: "AUTH",
    0x0005: "REASON",
    0x0006: "RETRY-AFTER",
    0x0007: "UNKNOWN-ATTRIBUTES",
    0x0008: "NEW-KEY",
    0x8011: "KEY-SHARE",
    0x8012: "COOKIE",
}
HEADER_LENGTH = 20
AUTH_FIXED = 24
"""Octets of AUTH before the tag."""


class _Attribute(Packet):
    """What follows an attribute belongs to the message, not to the attribute."""

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return b"", s


def _head(number: int, length: int) -> list[Any]:
    return [XShortEnumField("type", number, ATTRIBUTES), ShortField("len", length)]


class PAPHostId(_Attribute):
    """HOST-ID."""

    name = "HOST-ID"
    fields_desc: ClassVar = [
        *_head(0x8001, HOST_ID_LENGTH),
        XStrLenField("host_id", bytes(HOST_ID_LENGTH), length_from=lambda pkt: pkt.len),
    ]


class PAPWant(_Attribute):
    """WANT (docs/pap.md, 4.1)."""

    name = "WANT"
    fields_desc: ClassVar = [
        *_head(0x8002, 16),
        ShortField("count", 1),
        ByteEnumField("protocol", 0, PROTOCOLS),
        ByteEnumField("purpose", 1, PURPOSES),
        ByteEnumField("parity", 0, PARITIES),
        FlagsField("flags", 0, 8, ["EXACT", "SPECIFIC"]),
        ShortField("first", 0),
        IntField("lifetime", 0),
        IPField("address", "0.0.0.0"),
    ]


class PAPLease(_Attribute):
    """LEASE (docs/pap.md, 4.2)."""

    name = "LEASE"
    fields_desc: ClassVar = [
        *_head(0x8003, 24),
        XLongField("id", 0),
        IPField("address", "0.0.0.0"),
        ShortField("first", 1),
        ShortField("last", 1),
        ByteEnumField("protocol", 0, PROTOCOLS),
        ByteEnumField("purpose", 1, PURPOSES),
        XShortField("reserved", 0),
        IntField("lifetime", 0),
    ]


class PAPResume(_Attribute):
    """RESUME."""

    name = "RESUME"
    fields_desc: ClassVar = _head(0x8004, 0)


class PAPAuth(_Attribute):
    """AUTH (docs/pap.md, 4.3); its tag ends at a multiple of four octets."""

    name = "AUTH"
    fields_desc: ClassVar = [
        XShortEnumField("type", 0x8010, ATTRIBUTES),
        FieldLenField("len", None, length_of="tag", adjust=lambda _, tag: tag + AUTH_FIXED),
        XIntField("key_id", 0),
        ShortField("algorithm", 1),
        XShortField("reserved", 0),
        LongField("timestamp", 0),
        LongField("counter", 0),
        PadField(XStrLenField("tag", b"", length_from=lambda pkt: pkt.len - AUTH_FIXED), 4, padwith=b"\0"),
    ]


class PAPReason(_Attribute):
    """REASON."""

    name = "REASON"
    fields_desc: ClassVar = [
        XShortEnumField("type", 0x0005, ATTRIBUTES),
        FieldLenField("len", None, length_of="text"),
        PadField(StrLenField("text", b"", length_from=lambda pkt: pkt.len), 4, padwith=b"\0"),
    ]


class PAPRetryAfter(_Attribute):
    """RETRY-AFTER."""

    name = "RETRY-AFTER"
    fields_desc: ClassVar = [*_head(0x0006, 4), IntField("seconds", 0)]


class PAPUnknownAttributes(_Attribute):
    """UNKNOWN-ATTRIBUTES."""

    name = "UNKNOWN-ATTRIBUTES"
    fields_desc: ClassVar = [
        XShortEnumField("type", 0x0007, ATTRIBUTES),
        FieldLenField("len", None, length_of="types"),
        PadField(
            FieldListField("types", [], XShortField("", 0), length_from=lambda pkt: pkt.len),
            4,
            padwith=b"\0",
        ),
    ]


class PAPNewKey(_Attribute):
    """NEW-KEY."""

    name = "NEW-KEY"
    fields_desc: ClassVar = _head(0x0008, 0)


class PAPKeyShare(_Attribute):
    """KEY-SHARE: an X25519 public key (docs/pap.md, 9.3)."""

    name = "KEY-SHARE"
    fields_desc: ClassVar = [
        *_head(0x8011, KEY_SHARE_LENGTH),
        XStrLenField("share", bytes(KEY_SHARE_LENGTH), length_from=lambda pkt: pkt.len),
    ]


class PAPCookie(_Attribute):
    """COOKIE (docs/pap.md, 9.4)."""

    name = "COOKIE"
    fields_desc: ClassVar = [
        *_head(0x8012, COOKIE_LENGTH),
        XStrLenField("cookie", bytes(COOKIE_LENGTH), length_from=lambda pkt: pkt.len),
    ]


class PAPAttribute(_Attribute):
    """An attribute of a type that this layer does not know, or of a length that its type does not have."""

    name = "attribute"
    fields_desc: ClassVar = [
        XShortEnumField("type", 0, ATTRIBUTES),
        FieldLenField("len", None, length_of="value"),
        PadField(XStrLenField("value", b"", length_from=lambda pkt: pkt.len), 4, padwith=b"\0"),
    ]


_FIXED = {
    (0x8001, HOST_ID_LENGTH): PAPHostId,
    (0x8002, 16): PAPWant,
    (0x8003, 24): PAPLease,
    (0x8004, 0): PAPResume,
    (0x0006, 4): PAPRetryAfter,
    (0x0008, 0): PAPNewKey,
    (0x8011, KEY_SHARE_LENGTH): PAPKeyShare,
    (0x8012, COOKIE_LENGTH): PAPCookie,
}


def _attribute_class(pkt: Packet, lst: list[Packet], cur: Packet | None, remain: bytes) -> type[Packet] | None:
    if len(remain) < 4:
        return None
    number = int.from_bytes(remain[:2], "big")
    length = int.from_bytes(remain[2:4], "big")
    if number == 0x8010 and length >= AUTH_FIXED:
        return PAPAuth
    if number == 0x0005:
        return PAPReason
    if number == 0x0007 and length % 2 == 0:
        return PAPUnknownAttributes
    return _FIXED.get((number, length), PAPAttribute)


class PAP(Packet):
    """A PAP message; ``length`` is counted when it is built, unless it is given."""

    name = "PAP"
    fields_desc: ClassVar = [
        ByteField("version", 1),
        ByteEnumField("type", 0, TYPES),
        ByteEnumField("result", 0, RESULTS),
        XByteField("reserved1", 0),
        ShortField("length", None),
        XShortField("reserved2", 0),
        XLongField("transaction", 0),
        IntField("epoch", 0),
        PacketListField(
            "attributes",
            [],
            next_cls_cb=_attribute_class,
            length_from=lambda pkt: max(0, (pkt.length or 0) - HEADER_LENGTH),
        ),
    ]

    def post_build(self, pkt: bytes, pay: bytes) -> bytes:
        if self.length is None:
            pkt = pkt[:4] + len(pkt).to_bytes(2, "big") + pkt[6:]
        return pkt + pay

    def mysummary(self) -> str:
        names = " ".join(ATTRIBUTES.get(each.type, f"{each.type:#06x}") for each in self.attributes)
        return f"PAP {self.sprintf('%PAP.type% %PAP.result%')} {names}"

    def answers(self, other: Packet) -> bool:
        return isinstance(other, PAP) and self.transaction == other.transaction and self.type in (1, 8)


for _port in (SERVER_PORT, AGENT_PORT):
    bind_layers(UDP, PAP, dport=_port)
    bind_layers(UDP, PAP, sport=_port)
bind_layers(UDP, PAP, sport=AGENT_PORT, dport=SERVER_PORT)
