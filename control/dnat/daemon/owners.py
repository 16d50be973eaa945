"""Owners of ports as ``show`` tells them."""

from __future__ import annotations

from typing import Any

from dnat.leases.records import LeaseRecord
from dnat.types import Owner


def describe_owner(owner: Owner | LeaseRecord) -> dict[str, Any]:
    """One row of ``show owners``."""
    return {
        "address": str(owner.address),
        "first": owner.ports.first,
        "last": owner.ports.last,
        "protocol": owner.protocol.label,
        "host": str(owner.host),
    }
