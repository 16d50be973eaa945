"""The codec against itself, against any octets, and against what docs/pap.md says about bad ones."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pap_strategies import messages

from dnat.pap.codec import CodecError, decode, encode
from dnat.pap.messages import Auth, LeaseInfo, Message, MessageType, Result, Want
from dnat.types import IPv4Address, Parity, PortRange, Protocol, Purpose

HOST = bytes(range(16))


def raw(*attributes: tuple[int, bytes], version: int = 1, type_: int = 0, result: int = 0, tail: bytes = b"") -> bytes:
    """A message by hand, its length right."""
    body = b"".join(
        struct.pack("!HH", number, len(value)) + value + bytes(-len(value) % 4) for number, value in attributes
    )
    body += tail
    return struct.pack("!BBBxHxxQI", version, type_, result, 20 + len(body), 7, 0) + body


def error_of(datagram: bytes) -> CodecError:
    with pytest.raises(CodecError) as caught:
        decode(datagram)
    return caught.value


@given(messages)
@settings(max_examples=300)
def test_what_is_encoded_decodes_to_the_same(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=1300))
@settings(max_examples=300)
def test_any_octets_raise_nothing_but_the_codec_error(datagram: bytes) -> None:
    try:
        decode(datagram)
    except CodecError:
        pass


@given(messages, st.data())
@settings(max_examples=300)
def test_any_damage_raises_nothing_but_the_codec_error(message: Message, data: st.DataObject) -> None:
    datagram = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        datagram[data.draw(st.integers(0, len(datagram) - 1))] = data.draw(st.integers(0, 255))
    try:
        again = decode(bytes(datagram))
    except CodecError:
        return
    assert decode(encode(again)) == again


@given(messages, st.integers(0, 1200))
def test_every_shorter_datagram_is_refused(message: Message, length: int) -> None:
    datagram = encode(message)
    if length < len(datagram):
        assert error_of(datagram[:length]).transaction is None


@given(messages, st.permutations(range(10)))
def test_attributes_come_in_any_order_save_auth(message: Message, order: list[int]) -> None:
    message = replace(message, auth=None, leases=message.leases[:1])
    datagram = encode(message)
    attributes, position = [], 20
    while position < len(datagram):
        size = 4 + int.from_bytes(datagram[position + 2 : position + 4], "big")
        attributes.append(datagram[position : position + size + -size % 4])
        position += len(attributes[-1])
    shuffled = b"".join(attributes[each] for each in order if each < len(attributes))
    assert decode(datagram[:20] + shuffled) == message


def test_a_short_datagram_and_a_wrong_length_leave_nothing_to_answer() -> None:
    assert error_of(bytes(19)).transaction is None
    assert error_of(raw() + b"\0").transaction is None


def test_a_known_header_lets_the_server_answer() -> None:
    error = error_of(raw((0x8001, HOST), (0x8002, b"short")))
    assert (error.result, error.transaction, error.type, error.host_id) == (Result.MALFORMED, 7, 0, HOST)


def test_another_version_is_named_as_such() -> None:
    assert error_of(raw(version=2)).result is Result.UNSUPPORTED_VERSION


def test_unknown_mandatory_attributes_are_listed_once_and_the_others_skipped() -> None:
    error = error_of(raw((0x8123, b""), (0x0123, b"skip"), (0x8001, HOST), (0x8122, b"abc"), (0x8123, b"")))
    assert error.result is Result.UNSUPPORTED_ATTRIBUTE
    assert error.unknown == (0x8123, 0x8122)
    assert error.host_id == HOST
    assert decode(raw((0x0123, b"skipped"), (0x8001, HOST))).host_id == HOST


def test_auth_is_read_and_stands_last() -> None:
    auth = Auth(1, 1, 2, 3, bytes(32))
    last = encode(Message(MessageType.REQUEST, 7, auth=auth))
    assert decode(last).auth == auth
    assert error_of(raw((0x8010, last[24:]), (0x8001, HOST))).result is Result.MALFORMED


def test_result_codes_of_the_future_count_by_their_nibble() -> None:
    assert decode(raw(type_=1, result=47)).result is Result.POOL_EXHAUSTED
    assert decode(raw(type_=1, result=63)).result is Result.STORE_FAILED
    assert error_of(raw(type_=1, result=0x50)).result is Result.MALFORMED


WANT = struct.pack("!HBBBBHI4s", 2, 17, 3, 0, 0, 0, 0, bytes(4))
LEASE = struct.pack("!Q4sHHBBxxI", 9, b"\xc6\x33\x64\x01", 4000, 4001, 17, 3, 60)


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(raw(type_=5), id="message type of no version"),
        pytest.param(raw((0x8001, HOST), (0x8001, HOST)), id="HOST-ID twice"),
        pytest.param(raw((0x8004, b""), (0x8004, b"")), id="RESUME twice"),
        pytest.param(raw((0x8001, HOST[1:])), id="HOST-ID of 15 octets"),
        pytest.param(raw((0x8004, b"full")), id="RESUME with a value"),
        pytest.param(raw((0x8002, WANT + b"x")), id="WANT too long"),
        pytest.param(raw((0x8002, bytes(2) + WANT[2:])), id="WANT of no ports"),
        pytest.param(raw((0x8002, WANT[:2] + b"\x02" + WANT[3:])), id="WANT of protocol 2"),
        pytest.param(raw((0x8002, WANT[:3] + b"\x00" + WANT[4:])), id="WANT for purpose 0"),
        pytest.param(raw((0x8002, WANT[:4] + b"\x03" + WANT[5:])), id="WANT with parity 3"),
        pytest.param(raw((0x8002, WANT[:5] + b"\x02" + WANT[6:])), id="SPECIFIC from port 0"),
        pytest.param(raw((0x8002, WANT[:5] + b"\x02\xff\xff" + WANT[8:])), id="SPECIFIC past the last port"),
        pytest.param(raw((0x8002, WANT[:4] + b"\x01\x02\x00\x05" + WANT[8:])), id="SPECIFIC odd, wants even"),
        pytest.param(raw((0x8003, LEASE[:-1])), id="LEASE too short"),
        pytest.param(raw((0x8003, LEASE[:12] + b"\0\0" + LEASE[14:])), id="LEASE from port 0"),
        pytest.param(raw((0x8003, LEASE[:14] + b"\0\1" + LEASE[16:])), id="LEASE that ends before it starts"),
        pytest.param(raw((0x0005, bytes(256))), id="REASON of 256 octets"),
        pytest.param(raw((0x0005, b"\xff")), id="REASON that is no UTF-8"),
        pytest.param(raw((0x0006, b"\0\1")), id="RETRY-AFTER of 16 bits"),
        pytest.param(raw((0x0007, b"\0\1\2")), id="UNKNOWN-ATTRIBUTES of an odd length"),
        pytest.param(raw((0x0007, b"")), id="UNKNOWN-ATTRIBUTES without any"),
        pytest.param(raw((0x8010, bytes(23))), id="AUTH shorter than its fixed part"),
        pytest.param(raw((0x8010, bytes(24))), id="AUTH without a tag"),
        pytest.param(raw((0x8010, bytes(4) + b"\0\1" + bytes(18) + bytes(31))), id="AUTH tag too short"),
        pytest.param(raw(tail=b"\x80\x01"), id="half an attribute header"),
        pytest.param(raw(tail=b"\x80\x01\0\x10" + HOST[:12]), id="attribute past the end"),
        pytest.param(raw((0x0005, b"a"), tail=b"")[:-3].replace(b"\0\x1c", b"\0\x19"), id="padding missing"),
        pytest.param(raw((0x0100, bytes(1200))), id="more than 1200 octets"),
    ],
)
def test_malformed(datagram: bytes) -> None:
    error = error_of(datagram)
    assert error.result is Result.MALFORMED
    assert error.transaction == 7


@example("ä" * 200)
@given(st.text(st.characters(codec="utf-8"), min_size=200, max_size=300))
def test_a_long_reason_is_cut_between_characters(text: str) -> None:
    reason = decode(encode(Message(MessageType.ACK, 1, reason=text))).reason
    assert reason is not None
    assert text.startswith(reason)
    assert len(reason.encode()) > 251 or reason == text


def test_what_cannot_be_said_is_a_mistake_of_the_caller() -> None:
    lease = LeaseInfo(1, IPv4Address("198.51.100.1"), PortRange(1, 2), Protocol.UDP, Purpose.EXPLICIT, 0)
    with pytest.raises(ValueError, match="at most 1200"):
        encode(Message(MessageType.RELEASE, 1, leases=(lease,) * 43))
    with pytest.raises(ValueError, match="instead of 16"):
        encode(Message(MessageType.RELEASE, 1, host_id=b"short"))
    with pytest.raises(ValueError, match="not even"):
        Want(1, Protocol.UDP, Purpose.EXPLICIT, Parity.EVEN, first=5)


def test_a_full_answer_fits() -> None:
    lease = LeaseInfo(1, IPv4Address("198.51.100.1"), PortRange(1, 2), Protocol.UDP, Purpose.EXPLICIT, 0)
    auth = Auth(1, 1, 2, 3, bytes(32))
    full = Message(MessageType.RESPONSE, 1, host_id=HOST, leases=(lease,) * 32, retry_after=1, auth=auth)
    assert len(encode(full)) <= 1200
