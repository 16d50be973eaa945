"""What a lease is to a program, whether it uses asyncio or not."""

from __future__ import annotations

from typing import Any

from dnat.errors import PeerError

LOOK_SECONDS = 120.0
"""How long a program looks for a daemon that went away: as long as one may take to start."""
AGAIN_SECONDS = 0.2
ENDED = "the lease has ended, or dnat has"


class Granted:
    """Consecutive ports of the external address, as they were granted."""

    id: str
    address: str
    """External address."""
    first: int
    last: int
    protocol: str

    @property
    def ports(self) -> range:
        """All of them."""
        return range(self.first, self.last + 1)

    def _take(self, granted: dict[str, Any], watched: dict[str, Any]) -> None:
        """Take over what ``lease`` gave, if ``watch`` after it shows that it stands. Raises PeerError."""
        if not stands(granted["id"], watched):
            raise PeerError("the ports were taken back at once; ask again")
        self.id, self.address, self.protocol = granted["id"], granted["address"], granted["protocol"]
        self.first, self.last = granted["first"], granted["last"]


def wish(
    count: int, first: int | None, protocol: str, parity: str, exact: bool, lifetime: int
) -> dict[str, str | int | bool | None]:
    """Parameters of the method ``lease``."""
    return {
        "count": count,
        "first": first,
        "protocol": protocol,
        "parity": parity,
        "exact": exact,
        "lifetime": lifetime,
    }


def stands(lease_id: str, watched: dict[str, Any]) -> bool:
    """Whether a lease is among those of the connection, by the result of ``watch``."""
    return lease_id in {each["id"] for each in watched["leases"]}


def end(event: dict[str, Any]) -> str:
    """Why the lease ends with this event; empty if it does not."""
    if "reason" in event or event.get("event") == "released":
        return event.get("reason") or "released by the operator"
    return ""
