"""pyroute2 as the rest of this package uses it: a short-lived socket, and errors that name what was
attempted.
"""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from dnat.errors import PlatformError

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""

_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _GET_STRICT_CHECK = 270, 12
_ANSWER_SIZE = 4096
_DUMP_SIZE = 1 << 16


@contextlib.contextmanager
def socket(purpose: str) -> Iterator[Any]:
    """A pyroute2 IPRoute of the calling thread's namespace, closed at the end.

    ``purpose`` completes the sentence "cannot …" of the PlatformError that a refusal of the kernel becomes.
    Errors that the caller expects must be caught inside (see ``expect``).
    """
    from dnat.system.netlink import IPRoute

    # No multicast groups: what others change meanwhile is no answer to our questions.
    with refusals(purpose), IPRoute(groups=0, strict_check=True) as rtnl:
        yield rtnl


@contextlib.contextmanager
def refusals(purpose: str) -> Iterator[None]:
    """What the kernel refuses inside becomes a PlatformError, as of `socket`."""
    from dnat.system.netlink import NetlinkError

    try:
        yield
    except NetlinkError as error:
        raise PlatformError(f"cannot {purpose}: {os.strerror(error.code)}") from error


@contextlib.contextmanager
def expect(*codes: int) -> Iterator[None]:
    """Ignore the kernel's refusal if its errno is one of ``codes``."""
    from dnat.system.netlink import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code not in codes:
            raise


def request(message_type: int, body: bytes, flags: int, family: int = sockets.NETLINK_ROUTE) -> None:
    """Send one message whose body is already in the kernel's encoding, and wait for the acknowledgement.

    Raises pyroute2's NetlinkError as its own methods do, which can send only messages that they have built.
    """
    from dnat.system.netlink import NetlinkError

    with sockets.socket(sockets.AF_NETLINK, sockets.SOCK_RAW, family) as channel:
        channel.bind((0, 0))
        channel.send(HEADER.pack(HEADER.size + len(body), message_type, _REQUEST | _ACK | flags, 1, 0) + body)
        (code,) = struct.unpack_from("=i", channel.recv(_ANSWER_SIZE), HEADER.size)
    if code != 0:
        raise NetlinkError(-code)


def dump(message_type: int, body: bytes, family: int = sockets.NETLINK_ROUTE) -> Iterator[bytes]:
    """Ask for everything of a kind: the body of each message of the answer, in the kernel's encoding.

    Raises NetlinkError as `request` does.
    """
    from dnat.system.netlink import NetlinkError

    with sockets.socket(sockets.AF_NETLINK, sockets.SOCK_RAW, family) as channel:
        channel.bind((0, 0))
        # Only what the body asks for.
        channel.setsockopt(_SOL_NETLINK, _GET_STRICT_CHECK, 1)
        channel.send(HEADER.pack(HEADER.size + len(body), message_type, _REQUEST | _DUMP, 1, 0) + body)
        while True:
            answer, offset = channel.recv(_DUMP_SIZE), 0
            while offset < len(answer):
                length, kind, *_ = HEADER.unpack_from(answer, offset)
                if kind in (_DONE, _ERROR):
                    (code,) = struct.unpack_from("=i", answer, offset + HEADER.size)
                    if code != 0:
                        raise NetlinkError(-code)
                    return
                yield answer[offset + HEADER.size : offset + length]
                offset += (length + 3) & ~3


def unpack_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute (struct nlattr, struct rtattr), up to what is damaged."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def pack_attributes(attributes: Iterable[tuple[int, bytes]]) -> bytes:
    """The way back."""
    packed = b""
    for kind, value in attributes:
        packed += struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)
    return packed
