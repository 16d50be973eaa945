"""What a server grants, and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from dnat.pap.messages import MAX_LEASES, PERMANENT
from dnat.types import PortRange


@dataclass(frozen=True, slots=True)
class Reservation:
    """Ports that only some hosts may lease."""

    ports: PortRange
    hosts: frozenset[str]
    """LAN addresses, names of keys, and host identities in hexadecimal."""
    permanent: bool = False
    """Leases of these ports do not expire."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a server grants, and to whom. Raises ValueError when it contradicts itself."""

    networks: tuple[IPv4Network, ...]
    """The LAN; whoever asks from elsewhere is not answered."""
    lifetime: int = 3600
    """Seconds, for hosts that leave it to the server."""
    min_lifetime: int = 60
    max_lifetime: int = 86400
    max_leases_per_host: int = 32
    """At most 32: they have to fit one message."""
    max_ports_per_host: int = 2048
    """Of one HOST-ID, and of all at one LAN address: an identity is easily invented."""

    reservations: tuple[Reservation, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.min_lifetime <= self.lifetime <= self.max_lifetime:
            raise ValueError("lifetimes must keep 0 < min_lifetime <= lifetime <= max_lifetime")
        if not 1 <= self.max_leases_per_host <= MAX_LEASES:
            raise ValueError(f"max_leases_per_host must be 1 to {MAX_LEASES}")
        if self.max_ports_per_host < 1:
            raise ValueError("max_ports_per_host must be at least 1")

    def granted_lifetime(self, wanted: int, ports: PortRange | None = None) -> int:
        """Seconds granted to who wants so many; 0 wants the usual. ``ports``: where they are known."""
        if ports is not None and any(each.permanent and each.ports.overlaps(ports) for each in self.reservations):
            return PERMANENT
        return min(max(wanted or self.lifetime, self.min_lifetime), self.max_lifetime)

    def may_lease(self, ports: PortRange, names: frozenset[str]) -> bool:
        """Whether a host, known by these names, may lease particular ports."""
        return all(each.hosts & names for each in self.reservations if each.ports.overlaps(ports))

    def serves(self, host: IPv4Address) -> bool:
        return any(host in network for network in self.networks)
