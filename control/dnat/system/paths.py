"""Where an instance of dnat keeps its files (docs/architecture.md)."""

from __future__ import annotations

from pathlib import Path

RUN_DIRECTORY = Path("/run/dnat")
"""Runtime files; gone after a reboot, like the kernel state that they describe."""

STATE_DIRECTORY = Path("/var/lib/dnat")
"""Files that outlive a reboot: the server's store."""

BPF_DIRECTORY = RUN_DIRECTORY / "bpf"
"""The bpffs that holds pinned maps and programs of all instances."""

NETNS_CONFIG_DIRECTORY = Path("/etc/netns")
"""Per-namespace configuration, as iproute2 lays it out (ip-netns(8))."""
