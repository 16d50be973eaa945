"""Which source ports the kernel itself picks (``ip_local_port_range``)."""

from __future__ import annotations

from collections.abc import Iterable

from dnat.system import sysctl
from dnat.system.journal import Journal
from dnat.types import PortRange

_RANGE_KEY = "net/ipv4/ip_local_port_range"
_RESERVED_KEY = "net/ipv4/ip_local_reserved_ports"


def ensure(journal: Journal, ports: PortRange, gaps: Iterable[PortRange] = ()) -> list[str]:
    """Let the kernel choose source ports from ``ports`` without ``gaps``; what was reserved stays so."""
    known = journal.find(sysctl.KIND, _RESERVED_KEY)
    before = known.facts["old"] if known else sysctl.read(_RESERVED_KEY)
    reserved = [PortRange.parse(part) for part in before.split(",") if part]
    return [
        *sysctl.ensure(journal, _RESERVED_KEY, ",".join(str(r) for r in merge([*reserved, *gaps]))),
        *sysctl.ensure(journal, _RANGE_KEY, f"{ports.first} {ports.last}"),
    ]


def merge(ranges: Iterable[PortRange]) -> list[PortRange]:
    """The same ports in as few ranges as possible, in order."""
    merged: list[PortRange] = []
    for one in sorted(ranges):
        if merged and one.first <= merged[-1].last + 1:
            merged[-1] = PortRange(merged[-1].first, max(one.last, merged[-1].last))
        else:
            merged.append(one)
    return merged
