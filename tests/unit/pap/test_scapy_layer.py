"""scapy's view of PAP against the codec's, both ways, on generated messages."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pap_strategies import messages
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from dnat.capture import pap_layer as layer
from dnat.pap.codec import CodecError, decode, encode
from dnat.pap.messages import AGENT_PORT, SERVER_PORT, LeaseInfo, Message
from dnat.types import IPv4Address, PortRange, Protocol, Purpose


def to_scapy(message: Message) -> layer.PAP:
    """The same message built by scapy."""
    attributes: list[Any] = []
    if message.host_id is not None:
        attributes.append(layer.PAPHostId(host_id=message.host_id))
    if (want := message.want) is not None:
        attributes.append(
            layer.PAPWant(
                count=want.count,
                protocol=int(want.protocol),
                purpose=int(want.purpose),
                parity=int(want.parity),
                flags=want.exact + 2 * (want.first is not None),
                first=want.first or 0,
                lifetime=want.lifetime,
                address=str(want.address or "0.0.0.0"),
            )
        )
    attributes += [
        layer.PAPLease(
            id=lease.id,
            address=str(lease.address),
            first=lease.ports.first,
            last=lease.ports.last,
            protocol=int(lease.protocol),
            purpose=int(lease.purpose),
            lifetime=lease.lifetime,
        )
        for lease in message.leases
    ]
    if message.resume:
        attributes.append(layer.PAPResume())
    if message.reason is not None:
        attributes.append(layer.PAPReason(text=message.reason.encode()))
    if message.retry_after is not None:
        attributes.append(layer.PAPRetryAfter(seconds=message.retry_after))
    if message.unknown:
        attributes.append(layer.PAPUnknownAttributes(types=list(message.unknown)))
    if message.new_key:
        attributes.append(layer.PAPNewKey())
    if message.key_share is not None:
        attributes.append(layer.PAPKeyShare(share=message.key_share))
    if message.cookie is not None:
        attributes.append(layer.PAPCookie(cookie=message.cookie))
    if (auth := message.auth) is not None:
        attributes.append(
            layer.PAPAuth(
                key_id=auth.key_id,
                algorithm=auth.algorithm,
                timestamp=auth.timestamp,
                counter=auth.counter,
                tag=auth.tag,
            )
        )
    return layer.PAP(
        type=int(message.type),
        result=int(message.result),
        transaction=message.transaction,
        epoch=message.epoch,
        attributes=attributes,
    )


@given(messages)
@settings(max_examples=150)
def test_scapy_builds_what_the_codec_encodes(message: Message) -> None:
    assert bytes(to_scapy(message)) == encode(message)


@given(messages)
@settings(max_examples=150)
def test_scapy_dissects_what_the_codec_encodes(message: Message) -> None:
    seen = layer.PAP(encode(message))
    assert (seen.version, seen.type, seen.result) == (1, message.type, message.result)
    assert (seen.transaction, seen.epoch) == (message.transaction, message.epoch)
    by_class: dict[type, list[Any]] = {}
    for attribute in seen.attributes:
        by_class.setdefault(type(attribute), []).append(attribute)
    assert layer.PAPAttribute not in by_class
    assert [each.host_id for each in by_class.get(layer.PAPHostId, [])] == (
        [] if message.host_id is None else [message.host_id]
    )
    assert (layer.PAPResume in by_class) is message.resume
    assert (
        tuple(
            LeaseInfo(
                each.id,
                IPv4Address(each.address),
                PortRange(each.first, each.last),
                Protocol(each.protocol),
                Purpose(each.purpose),
                each.lifetime,
            )
            for each in by_class.get(layer.PAPLease, [])
        )
        == message.leases
    )
    for want in by_class.get(layer.PAPWant, []):
        assert message.want is not None
        assert (want.count, want.protocol, want.lifetime) == (
            message.want.count,
            message.want.protocol,
            message.want.lifetime,
        )
        assert bool(want.flags.EXACT) is message.want.exact
        assert bool(want.flags.SPECIFIC) is (message.want.first is not None)
    assert [each.text.decode() for each in by_class.get(layer.PAPReason, [])] == (
        [] if message.reason is None else [message.reason]
    )
    assert [tuple(each.types) for each in by_class.get(layer.PAPUnknownAttributes, [])] == (
        [message.unknown] if message.unknown else []
    )
    assert (layer.PAPNewKey in by_class) is message.new_key
    for class_, field, value in (
        (layer.PAPKeyShare, "share", message.key_share),
        (layer.PAPCookie, "cookie", message.cookie),
    ):
        assert [getattr(each, field) for each in by_class.get(class_, [])] == ([] if value is None else [value])
    assert [each.tag for each in by_class.get(layer.PAPAuth, [])] == (
        [] if message.auth is None else [message.auth.tag]
    )


@given(messages)
@settings(max_examples=100)
def test_what_scapy_dissects_it_builds_again(message: Message) -> None:
    seen = layer.PAP(encode(message))
    seen.clear_cache()
    for attribute in seen.attributes:
        attribute.clear_cache()
    assert decode(bytes(seen)) == message


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_scapy_shows_any_octets_and_accepts_no_more_than_they_are(datagram: bytes) -> None:
    seen = UDP(bytes(UDP(sport=AGENT_PORT, dport=SERVER_PORT) / Raw(datagram)))
    seen.summary()
    try:
        decode(datagram)
    except CodecError:
        return
    assert bytes(seen[layer.PAP]) == datagram


def test_ports_lead_to_the_layer() -> None:
    for sport, dport in ((AGENT_PORT, SERVER_PORT), (SERVER_PORT, AGENT_PORT), (40000, SERVER_PORT)):
        datagram = bytes(IP() / UDP(sport=sport, dport=dport) / layer.PAP(attributes=[layer.PAPResume()]))
        assert IP(datagram)[layer.PAP].summary() == "PAP REQUEST SUCCESS RESUME"
    made = IP() / UDP() / layer.PAP()
    assert (made[UDP].sport, made[UDP].dport) == (AGENT_PORT, SERVER_PORT)
