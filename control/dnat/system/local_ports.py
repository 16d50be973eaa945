"""Which source ports the kernel itself picks (``ip_local_port_range``)."""

from __future__ import annotations

from dnat.system import sysctl
from dnat.system.journal import Journal
from dnat.types import PortRange


def ensure(journal: Journal, ports: PortRange) -> list[str]:
    """Let the kernel choose source ports from ``ports``, but for those that somebody reserved."""
    return sysctl.ensure(journal, "net/ipv4/ip_local_port_range", f"{ports.first} {ports.last}")
