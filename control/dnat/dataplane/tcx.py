"""Programs on the hooks of TC by way of tcx (Linux 6.6), which costs a packet much less than clsact and its filters do.

They see a packet before the filters of clsact do, and what they leave alone goes on to those. A link holds a program in
its place; its pin, beside those of the programs, outlives this process. Works in the network namespace that the caller
is in.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from dnat.dataplane.bpf import Command, bpf, object_get, object_info, object_pin

Direction = Literal["ingress", "egress"]

LINKS = "links"
"""Directory of the links below the pins of a role. It stays when programs and maps of another version come."""
_ATTACH_TYPE = {"ingress": 46, "egress": 47}
"""BPF_TCX_INGRESS, BPF_TCX_EGRESS."""
_PROGRAMS_MAX = 64
"""Of one hook, as the kernel limits them."""
_LOOPBACK = 1


def is_supported() -> bool:
    """Whether this kernel has tcx."""
    try:
        programs(_LOOPBACK, "ingress")
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    return True


def programs(ifindex: int, direction: Direction) -> list[int]:
    """The kernel's numbers of all programs on a hook, whoever's they are, in their order. Raises OSError."""
    numbers = (ctypes.c_uint32 * _PROGRAMS_MAX)()
    fields = (ifindex, _ATTACH_TYPE[direction], 0, 0, ctypes.addressof(numbers), _PROGRAMS_MAX)
    try:
        _, attributes = bpf(Command.PROG_QUERY, "4IQI", *fields)
    except FileNotFoundError:
        return []
    (count,) = struct.unpack_from("=I", attributes, 24)
    return list(numbers[:count])


def attach(ifindex: int, direction: Direction, program: int, pins: Path) -> None:
    """Put a program, by its file descriptor, on an interface: in place of one of ours, without a packet in between, or
    behind all others. ``pins`` are those of the role. Raises OSError.
    """
    with _link(pins, ifindex, direction) as former:
        if former is not None and _update(former, program):
            return
    detach(ifindex, direction, pins)
    link = create(ifindex, direction, program)
    try:
        pin = _pin(pins, ifindex, direction)
        pin.parent.mkdir(parents=True, exist_ok=True)
        object_pin(link, pin)
    finally:
        os.close(link)


def create(ifindex: int, direction: Direction, program: int) -> int:
    """File descriptor of a new link that holds a program on an interface as long as it is open. Raises OSError."""
    return bpf(Command.LINK_CREATE, "4I", program, ifindex, _ATTACH_TYPE[direction], 0)[0]


def detach(ifindex: int, direction: Direction, pins: Path) -> None:
    """Take our program off an interface; does nothing when there is none."""
    with _link(pins, ifindex, direction) as link:
        if link is not None:
            # What loses its pin goes some time later.
            bpf(Command.LINK_DETACH, "I", link)
    _pin(pins, ifindex, direction).unlink(missing_ok=True)


def runs(ifindex: int, direction: Direction, program: int, pins: Path) -> bool:
    """Whether the program, by its file descriptor, is on an interface."""
    with _link(pins, ifindex, direction) as link:
        if link is None:
            return False
        # struct bpf_link_info: type, id, prog_id; then, of tcx, ifindex.
        holds, where = struct.unpack_from("=I4xI", object_info(link), 8)
        (identifier,) = struct.unpack_from("=I", object_info(program), 4)
        return (holds, where) == (identifier, ifindex)


def _pin(pins: Path, ifindex: int, direction: Direction) -> Path:
    # By number: a bpffs takes no dots, which names of interfaces may have.
    return pins / LINKS / f"{ifindex}-{direction}"


@contextmanager
def _link(pins: Path, ifindex: int, direction: Direction) -> Iterator[int | None]:
    """File descriptor of our link, open for a while, or None."""
    try:
        fd = object_get(_pin(pins, ifindex, direction))
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _update(link: int, program: int) -> bool:
    """False: the interface that the link was for is gone, and another one has its number."""
    try:
        bpf(Command.LINK_UPDATE, "4I", link, program, 0, 0)
    except OSError as error:
        if error.errno == errno.ENOLINK:
            return False
        raise
    return True
