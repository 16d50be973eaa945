"""Programs on interfaces: by tcx where the kernel has it, else clsact and direct-action filters of our own priority
and handle, beside whatever else is there.

Works in the network namespace that the caller is in. An interface without our filters is exactly as it was
before the first one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dnat.dataplane import tcx
from dnat.dataplane.bpf import object_get
from dnat.errors import PlatformError, UsageError
from dnat.system.netlink import IPRoute, NetlinkError

Direction = tcx.Direction

WITHOUT_LINK_ADDRESSES = "_l3"
"""Part of the names of programs for interfaces whose packets have no link addresses."""
PRIORITY = 210
"""Before the filters that ``tc`` numbers by itself (from 49152 down)."""
HANDLE = 0xD4A7
_PARENT = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_CLSACT = 0xFFFF0000
_ETH_P_ALL = 0x0003
"""A filter for IPv4 alone would not see a frame that carries a priority."""
_ETHERNET = 1
_LOOPBACK = 772
_POINT_TO_POINT = {512: "PPP", 0xFFFE: "tun", 768: "IP in IP", 776: "sit", 778: "GRE", 519: "raw IP"}
"""ARPHRD_*, linux/if_arp.h: packets without link addresses."""
_GONE = (errno.ENOENT, errno.ENODEV, errno.EINVAL)
"""What the kernel answers to the removal of something that is not there; EINVAL when clsact itself is
missing.
"""


def attach(ifname: str, direction: Direction, program_pin: Path, name: str) -> bool:
    """Put a pinned program on an interface, in place of our former one if there is one, without a packet in
    between.

    The pin is one of ``ensure_loaded``. ``name`` is what ``tc filter show`` calls it, should it be a filter. A former
    filter of ours is replaced by a filter, for no packet shall meet two programs. Returns whether clsact had to be
    added: keep that for ``detach``. Raises UsageError: no such interface; PlatformError: not Ethernet, no such pin, or
    the kernel refuses.
    """
    with IPRoute() as netlink:
        index = _index(netlink, ifname)
        _check_link(netlink, index, ifname, name)
        fd = _open(program_pin)
        added = False
        try:
            with _refusals(f"cannot attach {name} to {ifname}"):
                if _ours(netlink, index, direction) is None and tcx.is_supported():
                    tcx.attach(index, direction, fd, _role_pins(program_pin))
                    return False
                if not _has_clsact(netlink, index):
                    netlink.tc("add", "clsact", index)
                    added = True
                netlink.tc(
                    "replace-filter",
                    "bpf",
                    index,
                    HANDLE,
                    fd=fd,
                    name=name,
                    parent=_PARENT[direction],
                    prio=PRIORITY,
                    protocol=_ETH_P_ALL,
                    direct_action=True,
                )
        except PlatformError:
            if added:
                netlink.tc("del", "clsact", index)
            raise
        finally:
            os.close(fd)
        return added


def detach(ifname: str, direction: Direction, *, pins: Path, clsact_added: bool) -> None:
    """Take our program off an interface. Does nothing when it, or the interface, is not there.

    ``pins`` are those of its role. With ``clsact_added`` clsact goes too, unless a filter is left on it; so detach in
    the reverse order of attaching.
    """
    with IPRoute() as netlink:
        try:
            index = _index(netlink, ifname)
        except UsageError:
            return
        tcx.detach(index, direction, pins)
        try:
            if _ours(netlink, index, direction) is not None:
                netlink.tc(
                    "del-filter",
                    "bpf",
                    index,
                    HANDLE,
                    parent=_PARENT[direction],
                    prio=PRIORITY,
                    protocol=_ETH_P_ALL,
                )
            if clsact_added and _has_clsact(netlink, index) and not _any_filter(netlink, index):
                netlink.tc("del", "clsact", index)
        except NetlinkError as error:
            if error.code not in _GONE:
                raise PlatformError(f"cannot detach from {ifname}: {os.strerror(error.code)}") from error


def runs(ifname: str, direction: Direction, program_pin: Path, name: str) -> bool:
    """Whether the program of that pin is on an interface; of a filter, whether it was attached with that name.
    Raises UsageError: no such interface.
    """
    with IPRoute() as netlink:
        index = _index(netlink, ifname)
        if _ours(netlink, index, direction) == name:
            return True
        if not program_pin.exists():
            return False
        fd = _open(program_pin)
        try:
            return tcx.runs(index, direction, fd, _role_pins(program_pin))
        finally:
            os.close(fd)


def needs_clsact(ifname: str) -> bool:
    """Whether to attach means to add clsact. Raises UsageError: no such interface."""
    with IPRoute() as netlink:
        return not _has_clsact(netlink, _index(netlink, ifname)) and not tcx.is_supported()


def _role_pins(program_pin: Path) -> Path:
    return program_pin.parents[2]


def _index(netlink: Any, ifname: str) -> int:
    found = netlink.link_lookup(ifname=ifname)
    if found:
        return int(found[0])
    names = ", ".join(sorted(link.get("ifname") for link in netlink.get_links()))
    raise UsageError(f"no interface called {ifname}; there are: {names}")


def _check_link(netlink: Any, index: int, ifname: str, program: str) -> None:
    (link,) = netlink.get_links(index)
    kind = link["ifi_type"]
    if WITHOUT_LINK_ADDRESSES in program:
        if kind not in _POINT_TO_POINT:
            raise PlatformError(f"{ifname} is neither Ethernet nor PPP or an IP tunnel; the WAN has to be one of them")
    elif kind in _POINT_TO_POINT:
        raise PlatformError(f"{ifname} is not an Ethernet interface ({_POINT_TO_POINT[kind]}); a LAN has to be one")
    elif kind not in (_ETHERNET, _LOOPBACK):
        raise PlatformError(f"{ifname} is not an Ethernet interface; the data plane needs one")


def _has_clsact(netlink: Any, index: int) -> bool:
    return any(
        qdisc["index"] == index and qdisc.get_attr("TCA_KIND") == "clsact" for qdisc in netlink.get_qdiscs(index)
    )


def _filters(netlink: Any, index: int, direction: Direction) -> Iterator[Any]:
    try:
        for found in netlink.get_filters(index=index, parent=_PARENT[direction]):
            # The dump also names each chain's classifier instance, with handle 0.
            if found["index"] == index and found["handle"]:
                yield found
    except NetlinkError as error:
        if error.code not in _GONE:
            raise


def _any_filter(netlink: Any, index: int) -> bool:
    return any(True for direction in ("ingress", "egress") for _ in _filters(netlink, index, direction))


def _ours(netlink: Any, index: int, direction: Direction) -> str | None:
    for found in _filters(netlink, index, direction):
        if found["handle"] == HANDLE and found["info"] >> 16 == PRIORITY and found.get_attr("TCA_KIND") == "bpf":
            return str(found.get_attr("TCA_OPTIONS").get_attr("TCA_BPF_NAME"))
    return None


def _open(program_pin: Path) -> int:
    try:
        return object_get(program_pin)
    except FileNotFoundError as error:
        raise PlatformError(f"no program is pinned at {program_pin}: load it first") from error


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise PlatformError(f"{what}: dnat needs root") from error
        if error.code in (errno.ENOENT, errno.EOPNOTSUPP):
            raise PlatformError(f"{what}: this kernel lacks clsact or BPF filters (NET_CLS_BPF)") from error
        raise PlatformError(f"{what}: {os.strerror(error.code)}") from error
    except OSError as error:
        raise PlatformError(f"{what}: {error.strerror}") from error
