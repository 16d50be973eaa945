"""What the lease table is asked, what it remembers, and how its memory changes.

All times are seconds on the wall clock (records outlive a boot); identifiers and transactions are unsigned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from dnat.types import Parity, PortRange, Protocol, Purpose

MAX_UINT32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Want:
    """Consecutive ports that a host asks for (docs/pap.md, 4.1); a contradiction raises ValueError."""

    count: int
    """Number of ports, 1 to 65535."""
    protocol: Protocol
    purpose: Purpose
    parity: Parity = Parity.ANY
    """What the first port must be."""
    exact: bool = False
    """All or nothing. Without it fewer ports than asked are welcome."""
    first: int | None = None
    """The range must start here (SPECIFIC: all or nothing); None leaves the place to the server."""
    lifetime: int = 0
    """Seconds; 0 leaves it to the server."""
    address: IPv4Address | None = None
    """External address; None leaves it to the server."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 65535:
            raise ValueError(f"not a number of ports: {self.count}")
        if not 0 <= self.lifetime <= MAX_UINT32:
            raise ValueError(f"not a lifetime: {self.lifetime}")
        if self.address is not None and not int(self.address):
            raise ValueError("0.0.0.0 is no external address")
        if self.first is not None:
            PortRange(self.first, self.first + self.count - 1)
            if not fits(self.parity, self.first):
                raise ValueError(f"port {self.first} is not {self.parity.label}")

    @property
    def ports(self) -> PortRange | None:
        """The range that a SPECIFIC want names."""
        return None if self.first is None else PortRange(self.first, self.first + self.count - 1)

    @property
    def all_or_nothing(self) -> bool:
        return self.exact or self.first is not None


def fits(parity: Parity, port: int) -> bool:
    """Whether a range that starts at ``port`` has the parity."""
    return parity is Parity.ANY or (port % 2 == 0) is (parity is Parity.EVEN)


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease as the server knows and stores it."""

    id: int
    """Never 0; below 2**63, so that it fits a signed column."""
    address: IPv4Address
    """External address."""
    ports: PortRange
    protocol: Protocol
    purpose: Purpose
    host_id: bytes
    """16 octets: the holder, whatever its LAN address."""
    host: IPv4Address
    """The holder's LAN address, where routers send what arrives for the ports."""
    transaction: int
    """Of the WANT that was granted, any 64 bits: recognises its repeats even after a restart."""
    granted_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class HoldRecord:
    """A freed range that only its former holder may have before the hold ends (RFC 6888, REQ-8)."""

    address: IPv4Address
    ports: PortRange
    protocol: Protocol
    purpose: Purpose
    """What the range was used for: its holder gets it back for the same."""
    host_id: bytes
    """The former holder."""
    until: float

    @property
    def key(self) -> HoldKey:
        return (self.address, self.ports, self.protocol)


HoldKey = tuple[IPv4Address, PortRange, Protocol]


@dataclass(frozen=True, slots=True)
class PutLease:
    """Write a lease, over one of the same identifier if there is one."""

    record: LeaseRecord


@dataclass(frozen=True, slots=True)
class DropLease:
    """Forget a lease."""

    id: int


@dataclass(frozen=True, slots=True)
class PutHold:
    """Write a hold, over one of the same address, ports and protocol if there is one."""

    record: HoldRecord


@dataclass(frozen=True, slots=True)
class DropHold:
    """Forget a hold."""

    address: IPv4Address
    ports: PortRange
    protocol: Protocol


Change = PutLease | DropLease | PutHold | DropHold
"""What a store has to write; the changes of one step belong into one transaction, in their order."""


def outcome(changes: Iterable[Change]) -> tuple[dict[int, LeaseRecord | None], dict[HoldKey, HoldRecord | None]]:
    """How changes, in their order, leave each lease and hold that they touch; None: not there."""
    leases: dict[int, LeaseRecord | None] = {}
    holds: dict[HoldKey, HoldRecord | None] = {}
    for change in changes:
        match change:
            case PutLease(record):
                leases[record.id] = record
            case DropLease(lease_id):
                leases[lease_id] = None
            case PutHold(hold):
                holds[hold.key] = hold
            case DropHold(address, ports, protocol):
                holds[address, ports, protocol] = None
    return leases, holds
