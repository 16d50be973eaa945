"""``dnatctl map`` and ``unmap``: a port of the external address for a program that cannot be told which to bind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from dnat.daemon.leasing import Leasing
from dnat.daemon.mappings import Mapping, Mappings, holds, lease_of
from dnat.errors import PlatformError, UsageError
from dnat.pap.messages import Want
from dnat.types import Parity, PortRange, Protocol, Purpose


class Mapper:
    """One host's mappings; ``apply`` carries them into the kernel."""

    def __init__(
        self,
        path: Path,
        leasing: Leasing,
        address: Callable[[], IPv4Address | None],
        apply: Callable[[], Awaitable[object]],
    ) -> None:
        """``path``: where they are kept; ``address``: the external one now."""
        self.mappings = Mappings(path)
        self._leasing = leasing
        self._address = address
        self._apply = apply

    async def map(self, protocol: Protocol, local_port: int, port: int | None) -> dict[str, Any]:
        """Bind a local port to a port of the external address until ``unmap``, leasing it if need be.

        Raises UsageError for what cannot be mapped, PeerError when the port cannot be had, PlatformError when
        the mapping cannot be written down.
        """
        if protocol not in (Protocol.TCP, Protocol.UDP):
            raise UsageError("only TCP and UDP ports can be mapped")
        leases = self._leasing.leases
        if known := self.mappings.get(protocol, local_port):
            if port not in (None, known.port):
                raise UsageError(f"{protocol.label} port {local_port} is mapped to {known.port}; unmap it first")
            return self._describe(known)
        if any(local_port in lease.ports and lease.protocol.overlaps(protocol) for lease in leases):
            raise UsageError(f"port {local_port} is this host's own: the outside sees it as it is, without a mapping")
        if port is not None and self.mappings.within(PortRange(port, port), protocol):
            raise UsageError(f"{protocol.label} port {port} is mapped already; `dnatctl show bindings` says to what")
        held = port is not None and any(holds(lease, port, protocol) for lease in leases)
        granted = None
        if not held:
            granted = (await self._leasing.request(self._want(protocol, local_port, port))).lease
            port = granted.ports.first
        assert port is not None
        mapping = Mapping(protocol, local_port, port, not held)
        try:
            self.mappings.add(mapping)
        except PlatformError:
            if granted is not None:
                await self._leasing.release([granted.id])
            raise
        await self._apply()
        return self._describe(mapping)

    async def unmap(self, protocol: Protocol, local_port: int) -> dict[str, Any]:
        """End what ``map`` made, and give back the port if it was leased for that. Raises UsageError."""
        mapping = self.mappings.get(protocol, local_port)
        if mapping is None:
            raise UsageError(f"{protocol.label} port {local_port} is not mapped; `dnatctl show bindings` lists what is")
        self.mappings.remove(mapping)
        lease = lease_of(mapping, self._leasing.leases)
        if lease is not None and mapping.leased:
            await self._leasing.release([lease.id])
        await self._apply()
        return self._describe(mapping)

    async def regain(self) -> None:
        """Lease again what mappings need and the host lost."""
        for mapping in self.mappings:
            if mapping.leased and lease_of(mapping, self._leasing.leases) is None:
                await self._leasing.request(self._want(mapping.protocol, mapping.local_port, mapping.port))

    def _describe(self, mapping: Mapping) -> dict[str, Any]:
        return {
            "protocol": mapping.protocol.label,
            "local_port": mapping.local_port,
            "address": str(self._address()),
            "port": mapping.port,
        }

    def _want(self, protocol: Protocol, local_port: int, port: int | None) -> Want:
        parity = Parity.ANY if port else Parity.ODD if local_port % 2 else Parity.EVEN
        return Want(
            count=1,
            protocol=protocol,
            purpose=Purpose.EXPLICIT,
            parity=parity,
            exact=True,
            first=port,
            address=self._address(),
        )
