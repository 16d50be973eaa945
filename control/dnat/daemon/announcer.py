"""What a host's programs are told about its leases and its external address."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

from dnat.pap import events
from dnat.types import Lease


@dataclass(frozen=True, slots=True)
class LeaseChange:
    """One lease came or went."""

    kind: Literal["granted", "lost", "released"]
    """``lost``: the ports must not be used any more; ``released``: the host itself gave them back."""
    lease: Lease
    reason: str | None = None
    """Words for people, of what was lost."""
    code: str | None = None
    """Name of the result code (docs/pap.md, 6), of what was lost; ``expired`` where there is none."""


@dataclass(frozen=True, slots=True)
class AddressChange:
    """The host speaks from another external address now."""

    former: IPv4Address | None
    address: IPv4Address | None
    """None while it has none."""


@dataclass(frozen=True, slots=True)
class Renamed:
    """A server that lost its state granted the same ports anew: the lease has another identifier."""

    former_id: int
    lease: Lease


Change = LeaseChange | AddressChange | Renamed


class Announcer:
    """Finds out what is new, and tells it to whoever listens."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Change], None]] = []
        self._known: dict[int, Lease] = {}
        self._address: IPv4Address | None = None

    def heard(self, event: events.Event) -> None:
        """Something that the agent says. What must not be used any more is told at once."""
        match event:
            case events.Lost(lease, result, reason):
                self._known.pop(lease.id, None)
                self._tell(LeaseChange("lost", lease, reason, "expired" if result is None else result.label))
            case events.Renewed(lease, int(former_id)) if former_id != lease.id:
                if self._known.pop(former_id, None) is not None:
                    self._known[lease.id] = lease
                self._tell(Renamed(former_id, lease))
            case _:
                pass

    def applied(self, leases: Iterable[Lease], address: IPv4Address | None) -> None:
        """Kernel and network are as these leases say: what is new can be used from here on."""
        now = {lease.id: lease for lease in leases}
        before, self._known = self._known, now
        former, self._address = self._address, address
        if former != address:
            self._tell(AddressChange(former, address))
        for lease in before.values():
            if lease.id not in now:
                self._tell(LeaseChange("released", lease))
        for lease in now.values():
            if lease.id not in before:
                self._tell(LeaseChange("granted", lease))

    def _tell(self, change: Change) -> None:
        for listener in self.listeners:
            listener(change)
