"""Any PAP message, for Hypothesis."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import strategies as st

from dnat.leases.records import Want, fits
from dnat.pap.codec import TAG_LENGTHS
from dnat.pap.messages import Auth, LeaseInfo, Message, MessageType, Result
from dnat.types import Parity, PortRange, Protocol, Purpose

uint16 = st.integers(0, 2**16 - 1)
uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
addresses = st.integers(1, 2**32 - 1).map(IPv4Address)
ports = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda two: PortRange(min(two), max(two)))
reasons = st.text(st.characters(codec="utf-8"), max_size=255).filter(lambda text: len(text.encode()) <= 255)


@st.composite
def wants(draw: st.DrawFn) -> Want:
    asked = draw(ports)
    specific = draw(st.booleans())
    parity = draw(st.sampled_from([each for each in Parity if not specific or fits(each, asked.first)]))
    return Want(
        count=len(asked),
        protocol=draw(st.sampled_from(Protocol)),
        purpose=draw(st.sampled_from(Purpose)),
        parity=parity,
        exact=draw(st.booleans()),
        first=asked.first if specific else None,
        lifetime=draw(uint32),
        address=draw(st.none() | addresses),
    )


leases = st.builds(
    LeaseInfo,
    id=uint64,
    address=addresses,
    ports=ports,
    protocol=st.sampled_from(Protocol),
    purpose=st.sampled_from(Purpose),
    lifetime=uint32,
)


@st.composite
def auths(draw: st.DrawFn) -> Auth:
    algorithm = draw(st.sampled_from([*TAG_LENGTHS, 0, 77, 65535]))
    length = TAG_LENGTHS.get(algorithm)
    tag = draw(st.binary(min_size=length or 1, max_size=length or 64))
    return Auth(draw(uint32), algorithm, draw(uint64), draw(uint64), tag)


messages = st.builds(
    Message,
    type=st.sampled_from(MessageType),
    transaction=uint64,
    result=st.sampled_from(Result),
    epoch=uint32,
    host_id=st.none() | st.binary(min_size=16, max_size=16),
    want=st.none() | wants(),
    leases=st.lists(leases, max_size=18).map(tuple),
    resume=st.booleans(),
    reason=st.none() | reasons,
    retry_after=st.none() | uint32,
    unknown=st.lists(uint16, max_size=10).map(tuple),
    new_key=st.booleans(),
    key_share=st.none() | st.binary(min_size=32, max_size=32),
    cookie=st.none() | st.binary(min_size=16, max_size=16),
    auth=st.none() | auths(),
)
