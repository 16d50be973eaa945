"""Flows whose source the kernel translates (conntrack): ended, so that their next packet is looked at anew."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from dnat.system import rtnetlink
from dnat.types import PortRange

# linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h, nf_conntrack_common.h
_NETLINK_NETFILTER = 12
_GET, _DELETE = 0x101, 0x102
_OF_IPV4 = struct.pack("=BBH", socket.AF_INET, 0, 0)
_ORIGINAL, _REPLY, _STATUS, _ZONE, _STATUS_MASK = 1, 2, 3, 18, 26
_ADDRESSES, _ENDS = 1, 2
_SOURCE, _DESTINATION = 1, 2
_DESTINATION_PORT, _QUERY = 3, 4
_SOURCE_TRANSLATED = struct.pack("!I", 1 << 4)


@dataclass(frozen=True, slots=True)
class _Flow:
    source: IPv4Address
    seen: IPv4Address
    """Where answers go to, before they are translated back."""
    port: int
    """There, or the identifier of an ICMP query; 0 where the protocol has neither."""
    key: bytes
    """Attributes that name the flow."""


def end(address: IPv4Address, keep: PortRange | None) -> int:
    """Forget every flow whose source was translated to ``address``, but for those with a port of ``keep``.

    Returns how many. A kernel that tells nothing of its flows keeps them. Raises PlatformError.
    """
    ended = 0
    with rtnetlink.refusals(f"end what was translated to {address}"):
        for flow in _translated():
            if flow.seen == address != flow.source and (keep is None or flow.port not in keep):
                with rtnetlink.expect(errno.ENOENT):  # it ended by itself meanwhile
                    rtnetlink.request(_DELETE, _OF_IPV4 + flow.key, 0, _NETLINK_NETFILTER)
                    ended += 1
    return ended


def _translated() -> list[_Flow]:
    """The flows whose source is translated; of Linux before 5.15 all of them."""
    wanted = rtnetlink.pack_attributes([(_STATUS, _SOURCE_TRANSLATED), (_STATUS_MASK, _SOURCE_TRANSLATED)])
    with rtnetlink.expect(errno.EINVAL):  # there is no nf_conntrack_netlink
        return [_flow(body) for body in rtnetlink.dump(_GET, _OF_IPV4 + wanted, _NETLINK_NETFILTER)]
    return []


def _flow(body: bytes) -> _Flow:
    attributes = dict(rtnetlink.unpack_attributes(body[len(_OF_IPV4) :]))
    original, reply = _inner(attributes[_ORIGINAL]), _inner(attributes[_REPLY])
    ends = _inner(reply[_ENDS])
    return _Flow(
        IPv4Address(_inner(original[_ADDRESSES])[_SOURCE]),
        IPv4Address(_inner(reply[_ADDRESSES])[_DESTINATION]),
        int.from_bytes(ends.get(_DESTINATION_PORT) or ends.get(_QUERY) or b""),
        rtnetlink.pack_attributes((each, attributes[each]) for each in (_ORIGINAL, _ZONE) if each in attributes),
    )


def _inner(attribute: bytes) -> dict[int, bytes]:
    return dict(rtnetlink.unpack_attributes(attribute))
