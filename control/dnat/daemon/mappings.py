"""Static bindings that an operator asked for, and the file that keeps them across restarts of the daemon."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from dnat import files
from dnat.errors import PlatformError
from dnat.types import Lease, PortRange, Protocol, Purpose

log = logging.getLogger(__name__)


class Mapping(msgspec.Struct, frozen=True):
    """A local port that is always seen as the same port outside, and reached there."""

    protocol: Protocol
    """TCP or UDP."""
    local_port: int
    port: int
    """On the external address; in an explicit lease of this host."""
    leased: bool
    """The port was leased for this mapping, and is released with it."""


class Mappings:
    """What is mapped, by protocol and local port; every change is in the file when the method returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mappings: dict[tuple[Protocol, int], Mapping] = {}
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=list[Mapping])
        except FileNotFoundError:
            kept = []
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.warning("%s cannot be read, so nothing is mapped: %s", path, error)
            kept = []
        for mapping in kept:
            self._mappings[mapping.protocol, mapping.local_port] = mapping

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._mappings.values())

    def get(self, protocol: Protocol, local_port: int) -> Mapping | None:
        return self._mappings.get((protocol, local_port))

    def add(self, mapping: Mapping) -> None:
        """Raises PlatformError when it cannot be written down; then it is not added."""
        self._save([*self, mapping])
        self._mappings[mapping.protocol, mapping.local_port] = mapping

    def remove(self, mapping: Mapping) -> None:
        """Raises PlatformError when that cannot be written down; then it stays."""
        self._save([each for each in self if each != mapping])
        del self._mappings[mapping.protocol, mapping.local_port]

    def within(self, ports: PortRange, protocol: Protocol) -> list[Mapping]:
        """Those whose outside port is one of ``ports``."""
        return [each for each in self if each.port in ports and each.protocol.overlaps(protocol)]

    def _save(self, mappings: list[Mapping]) -> None:
        try:
            files.replace(self._path, msgspec.json.encode(mappings))
        except OSError as error:
            raise PlatformError(f"{self._path} cannot be written, so nothing was changed: {error.strerror}") from None


def lease_of(mapping: Mapping, leases: Iterable[Lease]) -> Lease | None:
    """The explicit lease that a mapping's port is in."""
    return next((lease for lease in leases if holds(lease, mapping.port, mapping.protocol)), None)


def holds(lease: Lease, port: int, protocol: Protocol) -> bool:
    """Whether a mapping may use this port of the lease."""
    return lease.purpose is Purpose.EXPLICIT and port in lease.ports and lease.protocol in (protocol, Protocol.ANY)


def unmapped(lease: Lease, mappings: Iterable[Mapping]) -> Iterator[tuple[PortRange, Protocol]]:
    """What of a lease programs may bind themselves: all but the mapped ports, each for its protocol."""
    mapped: dict[int, set[Protocol]] = {}
    for mapping in mappings:
        if holds(lease, mapping.port, mapping.protocol):
            mapped.setdefault(mapping.port, set()).add(mapping.protocol)
    first = lease.ports.first
    for port, protocols in sorted(mapped.items()):
        if first < port:
            yield PortRange(first, port - 1), lease.protocol
        if lease.protocol is Protocol.ANY:
            rest = {Protocol.TCP, Protocol.UDP, Protocol.ICMP} - protocols
            yield from ((PortRange(port, port), protocol) for protocol in sorted(rest))
        first = port + 1
    if first <= lease.ports.last:
        yield PortRange(first, lease.ports.last), lease.protocol
