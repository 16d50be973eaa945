"""What an agent says and remembers about leases."""

from __future__ import annotations

from collections import OrderedDict

from dnat.pap.messages import LeaseInfo
from dnat.types import Lease

REMEMBERED = 256
"""Ended leases, obeyed INVALIDATEs and given-up WANTs that are remembered: what was overtaken revives nothing."""


def lease_info(lease: Lease) -> LeaseInfo:
    """The lease in a question: the lifetime is left to the server."""
    return LeaseInfo(lease.id, lease.address, lease.ports, lease.protocol, lease.purpose, 0)


def names(info: LeaseInfo, lease: Lease) -> bool:
    """Whether a LEASE of an INVALIDATE means this lease: by identifier, or by ports if that is 0."""
    if info.id:
        return info.id == lease.id
    same_ports = info.address == lease.address and info.ports.overlaps(lease.ports)
    return same_ports and info.protocol.overlaps(lease.protocol)


def remember(memory: OrderedDict[int, None], key: int) -> None:
    memory[key] = None
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
