"""Programs at XDP, in the driver: whether one may send what it redirects, putting one on an interface, taking it off.

Works in the network namespace that the caller is in. Only one program can be on an interface: one that is not ours is
left alone. Only the driver's own mode is used: the generic one would cost more than TC.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

from dnat.dataplane.bpf import object_get, program_by_id, program_name
from dnat.dataplane.objects import XDP_PROGRAMS
from dnat.errors import PlatformError
from dnat.system import rtnetlink
from dnat.system.netlink import GenericNetlinkSocket, IPRoute, NetlinkError, genlmsg

_OURS = {name for names in XDP_PROGRAMS.values() for name in names}
_RTM_SETLINK = 19
_IFLA_XDP = 43 | 0x8000
_FD, _FLAGS, _EXPECTED_FD = 1, 3, 8
_IF_NOEXIST, _DRIVER_MODE, _REPLACE = 1, 4, 16
_REDIRECT, _SEND_REDIRECTED = 2, 4
"""NETDEV_XDP_ACT_REDIRECT and NETDEV_XDP_ACT_NDO_XMIT, linux/netdev.h."""
_DEV_GET = 1
_REFUSED = (errno.EOPNOTSUPP, errno.EINVAL, errno.EBUSY, errno.EEXIST, errno.ERANGE, errno.ENOSPC, errno.ENOMEM)


class _Device(genlmsg):  # type: ignore[misc]
    """A message of the generic netlink family "netdev" (Linux 6.3)."""

    prefix = "NETDEV_A_DEV_"
    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


def can_redirect(ifindex: int) -> bool:
    """Whether the driver lets a program redirect; where the kernel cannot say (before 6.3): no."""
    return bool(_features(ifindex) & _REDIRECT)


def can_send_redirected(ifindex: int) -> bool:
    """Whether the driver sends what was redirected to it, just now: many do only while they have a program of
    their own, and veth only while the other end has GRO or a program.
    """
    return bool(_features(ifindex) & _SEND_REDIRECTED)


def is_virtual_cable(ifindex: int) -> bool:
    """Whether an interface is one end of a veth pair. A program there has the other end cut what it sends to single
    segments in software: bulk TCP then goes at a half to a third of its speed.
    """
    with IPRoute() as netlink:
        (link,) = netlink.get_links(ifindex)
        return bool(link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "veth")


def _features(ifindex: int) -> int:
    try:
        with GenericNetlinkSocket() as netlink:
            netlink.bind("netdev", _Device)
            request = _Device()
            request["cmd"], request["version"] = _DEV_GET, 1
            request["attrs"] = [("NETDEV_A_DEV_IFINDEX", ifindex)]
            (answer, *_) = netlink.nlm_request(request, msg_type=netlink.prid, msg_flags=1)
            return int(answer.get_attr("NETDEV_A_DEV_XDP_FEATURES") or 0)
    except (NetlinkError, OSError):
        return 0


def attached(ifindex: int) -> str | None:
    """Which of our programs is on an interface, or None."""
    found = _program(ifindex)
    if found is None:
        return None
    fd, name = found
    os.close(fd)
    return name if name in _OURS else None


def runs(ifindex: int, program_pin: Path) -> bool:
    """Whether the very program of that pin is on an interface."""
    found = _program(ifindex)
    if found is None:
        return False
    pinned = object_get(program_pin)
    try:
        return _identity(found[0]) == _identity(pinned)
    finally:
        os.close(found[0])
        os.close(pinned)


def attach(ifindex: int, program_pin: Path) -> bool:
    """Put a pinned program on an interface, in place of one of ours if there is one, without a packet in between.

    False: the driver does not take it, or another program is there. Raises PlatformError: no root, no such pin.
    """
    former = _program(ifindex)
    pinned = object_get(program_pin)
    try:
        if former is None:
            return _set(ifindex, pinned, _IF_NOEXIST)
        return former[1] in _OURS and _set(ifindex, pinned, _REPLACE, expected=former[0])
    finally:
        os.close(pinned)
        if former:
            os.close(former[0])


def detach(ifindex: int) -> None:
    """Take our program off an interface. Does nothing when there is none of ours, or no such interface."""
    former = _program(ifindex)
    if former is None:
        return
    try:
        if former[1] in _OURS:
            _set(ifindex, -1, _REPLACE, expected=former[0])
    finally:
        os.close(former[0])


def _program(ifindex: int) -> tuple[int, str] | None:
    """File descriptor and name of the program in the driver, whoever's it is."""
    with IPRoute() as netlink:
        try:
            (link,) = netlink.get_links(ifindex)
        except NetlinkError:
            return None
        xdp: Any = link.get_attr("IFLA_XDP")
    identifier = xdp.get_attr("IFLA_XDP_PROG_ID") if xdp else None
    if not identifier:
        return None
    try:
        fd = program_by_id(identifier)
    except FileNotFoundError:
        return None
    return fd, program_name(fd)


def _identity(fd: int) -> str:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines()
    return next(line for line in lines if line.startswith("prog_id:"))


def _set(ifindex: int, fd: int, flags: int, expected: int | None = None) -> bool:
    attributes = _attribute(_FD, struct.pack("=i", fd)) + _attribute(_FLAGS, struct.pack("=I", _DRIVER_MODE | flags))
    if expected is not None:
        attributes += _attribute(_EXPECTED_FD, struct.pack("=i", expected))
    body = struct.pack("=BxHiII", 0, 0, ifindex, 0, 0) + _attribute(_IFLA_XDP, attributes)
    try:
        rtnetlink.request(_RTM_SETLINK, body, 0)
    except NetlinkError as error:
        if error.code in (*_REFUSED, errno.ENODEV):
            return False
        raise PlatformError(
            f"cannot change the XDP program of interface {ifindex}: {os.strerror(error.code)}"
        ) from error
    return True


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value
