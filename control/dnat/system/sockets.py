"""Closes sockets of programs: of ports that are no longer this host's, and connections of peers that have too many.

A TCP connection from a lost port would wait for answers that cannot come until it times out, fifteen minutes later.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from ipaddress import IPv4Address, ip_address
from typing import Any

from dnat.system import rtnetlink
from dnat.types import PortRange, Protocol

_NETLINK_SOCK_DIAG = 4
_SOCK_DESTROY = 21
_ALL_STATES_BUT_TIME_WAIT = 0xFFF & ~(1 << 6)
_REQUEST = struct.Struct("=BBBxI")
_IDENTITY = struct.Struct("!HH16s16s")
_REST = struct.Struct("=IQ")
_GONE = (errno.ENOENT, errno.EOPNOTSUPP)
"""It ended by itself meanwhile; or the kernel was built without CONFIG_INET_DIAG_DESTROY."""


def close(address: IPv4Address, ports: Collection[tuple[PortRange, Protocol]]) -> int:
    """Close every socket that is bound to ``address`` and one of these ports; returns how many were.

    Programs get ECONNABORTED. Sockets bound to no address, and those of UDP that never named a peer, are not
    touched: they may be used on. Raises PlatformError.
    """

    def is_meant(protocol: Protocol, found: dict[str, Any]) -> bool:
        source, port = ip_address(found["idiag_src"]), found["idiag_sport"]
        return address in (source, getattr(source, "ipv4_mapped", None)) and any(
            port in each and of.overlaps(protocol) for each, of in ports
        )

    return _close(address, (Protocol.TCP, Protocol.UDP), is_meant) if ports else 0


def disconnect(address: IPv4Address, connections: Collection[tuple[int, IPv4Address, int]]) -> int:
    """Close TCP connections that programs have at ``address``, as of `local_sockets.connections`; returns how many.

    Programs get ECONNABORTED, peers a reset. Raises PlatformError.
    """
    ends = {(str(address), port, str(peer), peer_port) for port, peer, peer_port in connections}

    def is_meant(protocol: Protocol, found: dict[str, Any]) -> bool:
        return (found["idiag_src"], found["idiag_sport"], found["idiag_dst"], found["idiag_dport"]) in ends

    return _close(address, (Protocol.TCP,), is_meant) if ends else 0


def _close(
    address: IPv4Address, protocols: Iterable[Protocol], is_meant: Callable[[Protocol, dict[str, Any]], bool]
) -> int:
    closed = 0
    with rtnetlink.socket(f"close sockets of {address}"):
        for protocol in protocols:
            for found in _sockets(protocol):
                if is_meant(protocol, found):
                    with rtnetlink.expect(*_GONE):
                        rtnetlink.request(_SOCK_DESTROY, _identity(protocol, found), 0, _NETLINK_SOCK_DIAG)
                        closed += 1
    return closed


def _sockets(protocol: Protocol) -> Iterator[dict[str, Any]]:
    from dnat.system.netlink import DiagSocket

    with DiagSocket() as diagnosis:
        for family in (socket.AF_INET, socket.AF_INET6):
            yield from diagnosis.get_sock_stats(family=family, protocol=int(protocol), states=_ALL_STATES_BUT_TIME_WAIT)


def _identity(protocol: Protocol, found: dict[str, Any]) -> bytes:
    """struct inet_diag_req_v2 that names one socket."""
    family = found["idiag_family"]
    ends = [socket.inet_pton(family, found[each]).ljust(16, b"\0") for each in ("idiag_src", "idiag_dst")]
    return (
        _REQUEST.pack(family, protocol, 0, 0)
        + _IDENTITY.pack(found["idiag_sport"], found["idiag_dport"], *ends)
        + _REST.pack(found["idiag_if"], found["idiag_cookie"])
    )
