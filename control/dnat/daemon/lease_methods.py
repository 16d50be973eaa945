"""The methods of the local API behind ``dnatctl invalidate`` and ``drain``: what an operator does to leases."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from dnat.daemon.api import Method
from dnat.daemon.wishes import checked_port
from dnat.errors import UsageError
from dnat.leases.records import LeaseRecord
from dnat.pap.messages import Result
from dnat.types import PortRange

if TYPE_CHECKING:
    from dnat.daemon.server import ServerRole
    from dnat.store import Tenure


class LeaseMethods:
    """All of them are root's, and a server's."""

    def __init__(self, server: Callable[[], ServerRole | None]) -> None:
        self._server = server

    def methods(self) -> dict[str, Method]:
        return {"invalidate": self._invalidate, "drain": self._drain, "history": self._history}

    async def _invalidate(
        self, leases: list[str], hosts: list[str], everything: bool = False, reason: str | None = None
    ) -> dict[str, Any]:
        """``leases``: identifiers, ports or ranges; ``hosts``: LAN addresses."""
        server = self._need_server()
        found = list(server.records()) if everything else []
        for text in leases:
            found += _named(server, text)
        for host in hosts:
            theirs = [record for record in server.records() if record.host == IPv4Address(host)]
            if not theirs:
                raise UsageError(f"the host {host} holds no lease; `dnatctl show leases` lists them")
            found += theirs
        ids = list(dict.fromkeys(record.id for record in found))
        await server.invalidate(ids, Result.ADMINISTRATIVE, reason)
        taken = {record.id: _taken(record) for record in found}
        return {"leases": len(ids), "taken": list(taken.values())}

    async def _drain(self, addresses: list[str], off: bool = False) -> dict[str, Any]:
        server = self._need_server()
        wanted = frozenset(map(IPv4Address, addresses))
        if unknown := wanted - set(server.external_addresses):
            raise UsageError(f"{', '.join(map(str, unknown))} is no external address of this server")
        if wanted and not off and wanted >= set(server.external_addresses):
            raise UsageError(
                "no address would be left for the hosts: add one to server.external_addresses and `dnatctl reload`;"
                " or take everything back: dnatctl invalidate --all"
            )
        return {"leases": await server.drain(None if off else wanted), "summary": server.summary()}

    async def _history(
        self,
        since: float = 0.0,
        until: float | None = None,
        address: str | None = None,
        port: int | None = None,
    ) -> dict[str, Any]:
        """Times are seconds since 1970; a moment has both ends equal."""
        server = self._need_server()
        end = float("inf") if until is None else until
        from dnat.store import Period

        where = IPv4Address(address) if address else None
        period = Period(since, end, where, None if port is None else checked_port(port))
        return {"tenures": [_describe(server, each) for each in await server.tenures(period)]}

    def _need_server(self) -> ServerRole:
        server = self._server()
        if server is None:
            raise UsageError('that is a matter of the machine with the role "server": run this there')
        return server


def _describe(server: ServerRole, tenure: Tenure) -> dict[str, Any]:
    return {
        "lease": f"{tenure.lease:016x}",
        "address": str(tenure.address),
        "first": tenure.ports.first,
        "last": tenure.ports.last,
        "protocol": tenure.protocol.label,
        "purpose": tenure.purpose.label,
        "host": str(tenure.host),
        "host_id": tenure.host_id.hex(),
        "name": server.name_of(tenure.host_id),
        "since": tenure.since,
        "until": tenure.until,
    }


def _taken(record: LeaseRecord) -> dict[str, Any]:
    """Who loses what."""
    ports = record.ports
    return {"host": str(record.host), "address": str(record.address), "first": ports.first, "last": ports.last}


def _named(server: ServerRole, text: str) -> list[LeaseRecord]:
    """The leases that an identifier, a port or a range means. Raises UsageError where there is none."""
    if len(text) == 16:
        found = [record for record in server.records() if f"{record.id:016x}" == text]
    else:
        ports = PortRange.parse(text)
        found = [record for record in server.records() if record.ports.overlaps(ports)]
    if not found:
        raise UsageError(f"nobody leases {text}; `dnatctl show leases` lists what is leased")
    return found
