"""The host's leases in a file under /run: what a restarted daemon goes on with, even when the server is away."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import msgspec

from dnat import files
from dnat.pap.epoch import EpochState
from dnat.types import Lease, PortRange, Protocol, Purpose


class SavedLease(msgspec.Struct, frozen=True):
    """One lease; ``expires_at`` in seconds since boot."""

    id: int
    address: str
    first: int
    last: int
    protocol: int
    purpose: int
    expires_at: float


class _File(msgspec.Struct, frozen=True):
    epoch: EpochState | None
    leases: list[SavedLease]
    gateway: str = ""


class Saved(msgspec.Struct, frozen=True):
    """What the file said."""

    epoch: EpochState | None
    leases: list[Lease]
    gateway: str
    """Of the LAN on which the leases are good; empty: an earlier version did not write it down."""


def save_leases(path: Path, leases: tuple[Lease, ...], epoch: EpochState | None, gateway: str) -> None:
    """Replace the file in one step."""
    rows = [
        SavedLease(
            lease.id,
            str(lease.address),
            lease.ports.first,
            lease.ports.last,
            lease.protocol,
            lease.purpose,
            lease.expires_at,
        )
        for lease in leases
    ]
    files.replace(path, msgspec.json.encode(_File(epoch, rows, gateway)))


def load_leases(path: Path, now: float) -> Saved | None:
    """What of the file still stands at ``now`` (seconds since boot); None when nothing does or it cannot be read."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        leases = [
            Lease(
                row.id,
                IPv4Address(row.address),
                PortRange(row.first, row.last),
                Protocol(row.protocol),
                Purpose(row.purpose),
                row.expires_at,
            )
            for row in file.leases
            if row.expires_at > now
        ]
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    return Saved(file.epoch, leases, file.gateway) if leases else None
