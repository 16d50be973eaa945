"""The golden messages of tests/unit/vectors/pap.json: what is on the wire does not change by accident."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dnat.capture.pap_layer import PAP, PAPAttribute
from dnat.pap.auth import Direction, Key, Stamp, is_sealed, seal
from dnat.pap.codec import ATTRIBUTES, CodecError, decode, encode
from dnat.pap.messages import Auth, LeaseInfo, Message, MessageType, Result, Want
from dnat.types import IPv4Address, Parity, PortRange, Protocol, Purpose

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "pap.json").read_text())
ACCEPTED = [pytest.param(each, id=each["meaning"]) for each in VECTORS["accepted"]]
REFUSED = [pytest.param(each, id=each["meaning"]) for each in VECTORS["refused"]]


def use(fields: dict[str, Any]) -> dict[str, Any]:
    return {"protocol": Protocol[fields["protocol"].upper()], "purpose": Purpose[fields["purpose"].upper()]}


def want(fields: dict[str, Any]) -> Want:
    return Want(
        count=fields["count"],
        **use(fields),
        parity=Parity[fields["parity"].upper()],
        exact=fields["exact"],
        first=fields["first"],
        lifetime=fields["lifetime"],
        address=IPv4Address(fields["address"]) if fields["address"] else None,
    )


def lease(fields: dict[str, Any]) -> LeaseInfo:
    return LeaseInfo(
        id=int(fields["id"], 16),
        address=IPv4Address(fields["address"]),
        ports=PortRange(fields["first"], fields["last"]),
        **use(fields),
        lifetime=fields["lifetime"],
    )


def auth(fields: dict[str, Any]) -> Auth:
    return Auth(**{**fields, "tag": bytes.fromhex(fields["tag"])})


def message(fields: dict[str, Any]) -> Message:
    return Message(
        type=MessageType[fields["type"]],
        transaction=int(fields["transaction"], 16),
        result=Result[fields["result"]],
        epoch=fields["epoch"],
        host_id=bytes.fromhex(fields["host_id"]) if "host_id" in fields else None,
        want=want(fields["want"]) if "want" in fields else None,
        leases=tuple(lease(each) for each in fields.get("leases", [])),
        resume=fields.get("resume", False),
        reason=fields.get("reason"),
        retry_after=fields.get("retry_after"),
        unknown=tuple(int(each, 16) for each in fields.get("unknown", [])),
        new_key=fields.get("new_key", False),
        key_share=bytes.fromhex(fields["key_share"]) if "key_share" in fields else None,
        cookie=bytes.fromhex(fields["cookie"]) if "cookie" in fields else None,
        auth=auth(fields["auth"]) if "auth" in fields else None,
    )


@pytest.mark.parametrize("vector", ACCEPTED)
def test_accepted(vector: dict[str, Any]) -> None:
    octets = bytes.fromhex(vector["hex"])
    assert decode(octets) == message(vector["message"])
    if vector.get("canonical", True):
        assert encode(message(vector["message"])) == octets


@pytest.mark.parametrize("vector", ACCEPTED)
def test_scapy_reads_and_writes_them(vector: dict[str, Any]) -> None:
    octets = bytes.fromhex(vector["hex"])
    seen = PAP(octets)
    assert MessageType(seen.type).name == vector["message"]["type"]
    assert Result(seen.result).name == vector["message"]["result"]
    if vector.get("canonical", True):
        assert not any(isinstance(each, PAPAttribute) for each in seen.attributes)
    for each in (seen, *seen.attributes):
        each.clear_cache()
    assert bytes(seen) == octets


@pytest.mark.parametrize("vector", [each for each in ACCEPTED if "sealed" in each.values[0]])
def test_sealed(vector: dict[str, Any]) -> None:
    """The tags are made anew, and nothing else than what was sealed is taken for it."""
    octets, sealed = bytes.fromhex(vector["hex"]), vector["sealed"]
    known = auth(vector["message"]["auth"])
    key = Key(known.key_id, bytes.fromhex(sealed["secret"]))
    host = IPv4Address(sealed["host"])
    plain = encode(replace(message(vector["message"]), auth=None))
    assert seal(plain, key, Direction(sealed["direction"]), host, Stamp(known.timestamp, known.counter)) == octets
    assert is_sealed(octets, known, key, Direction(sealed["direction"]), host)
    assert not is_sealed(octets, known, key, Direction(3 - sealed["direction"]), host)
    assert not is_sealed(octets, known, key, Direction(sealed["direction"]), host + 1)
    for position in range(len(octets)):
        forged = bytearray(octets)
        forged[position] ^= 1
        try:
            seen = decode(bytes(forged))
        except CodecError:
            continue
        assert seen.auth is not None
        assert not is_sealed(bytes(forged), seen.auth, key, Direction(sealed["direction"]), host), position


@pytest.mark.parametrize("vector", REFUSED)
def test_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(CodecError) as caught:
        decode(bytes.fromhex(vector["hex"]))
    assert caught.value.result is Result[vector["result"]]
    assert (caught.value.transaction is not None) is vector["answerable"]
    assert caught.value.unknown == tuple(int(each, 16) for each in vector["unknown"])


def test_every_message_type_and_every_attribute_has_a_vector() -> None:
    seen = [decode(bytes.fromhex(each["hex"])) for each in VECTORS["accepted"]]
    assert {each.type for each in seen} == set(MessageType)
    for attribute in ATTRIBUTES:
        assert any(getattr(each, attribute.field) for each in seen), attribute.name
