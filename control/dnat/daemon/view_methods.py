"""The methods of the local API that only look: ``status``, ``show``, ``metrics``, ``sip``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from dnat import __version__
from dnat.daemon.api import ApiServer
from dnat.errors import UsageError

if TYPE_CHECKING:
    from dnat.daemon.clustered import ClusteredRouter
    from dnat.daemon.host import HostRole
    from dnat.daemon.metrics import Measured
    from dnat.daemon.programs import Programs
    from dnat.daemon.router import RouterRole
    from dnat.daemon.server import ServerRole
    from dnat.daemon.sip import SipRole

SCHEMA = 1


@dataclass(slots=True)
class Roles:
    """What a daemon does; None where it does not."""

    names: tuple[str, ...]
    server: ServerRole | None = None
    router: RouterRole | None = None
    clustered: ClusteredRouter | None = None
    """What the router follows, if that is not a server beside it."""
    host: HostRole | None = None
    sip: SipRole | None = None
    programs: Programs | None = None
    api: ApiServer | None = None

    def summaries(self) -> list[str]:
        """A line for each."""
        return [role.summary() for role in (self.server, self.router, self.host, self.sip) if role is not None]


async def measure(roles: Roles) -> Measured:
    """Figures of all roles."""
    from dnat.daemon.metrics import Measured

    measured = Measured()
    for role in (roles.server, roles.router, roles.host, roles.sip, roles.programs):
        if role is not None:
            role.measure(measured)
    if roles.api is not None:
        measured.connections = roles.api.connections
    return measured


class ViewMethods:
    """All of them are everybody's."""

    def __init__(self, instance: str, roles: Roles) -> None:
        self._instance = instance
        self._roles = roles

    async def status(self) -> dict[str, Any]:
        """Who this is."""
        host = self._roles.host
        return {
            "instance": self._instance,
            "version": __version__,
            "pid": os.getpid(),
            "roles": list(self._roles.names),
            "summary": self._roles.summaries(),
            "host_id": host.host_id.hex() if host is not None else None,
        }

    async def show(self) -> dict[str, Any]:
        """The document of ``show -o json`` (docs/show.md)."""
        server, router, host = self._roles.server, self._roles.router, self._roles.host
        addresses: dict[IPv4Address, None] = {}
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "instance": self._instance,
            "roles": list(self._roles.names),
            "external_addresses": [],
            "leases": [],
            "bindings": [],
            "owners": [],
            "lost": [],
            "counters": {},
            "pap": {},
        }
        if server is not None:
            addresses |= dict.fromkeys(server.external_addresses)
            document["leases"] += server.describe_leases()
            document["owners"] += server.describe_owners()
            document["pap"]["server"] = server.counters
        if host is not None:
            addresses |= dict.fromkeys(host.external_addresses)
            if server is None:
                document["leases"] += host.describe_leases()
            document["bindings"] += host.describe_bindings()
            document["containers"] = host.guests.describe()
            document["lost"] += host.losses.describe()
            document["pap"]["agent"] = host.pap_counters
            document["counters"] |= host.counters
        if router is not None:
            if server is None:
                addresses |= dict.fromkeys(router.external_addresses)
                document["owners"] += router.describe_owners()
            document["counters"] |= router.counters
            document["router"] = router.describe()
        if self._roles.clustered is not None:
            document["router"]["store"] = self._roles.clustered.describe()
        document["external_addresses"] = [str(address) for address in addresses]
        return document

    async def metrics(self) -> dict[str, Any]:
        """In Prometheus' text format."""
        from dnat.daemon.metrics import exposition

        return {"text": exposition(await measure(self._roles), self._roles.names)}

    async def sip(self) -> dict[str, Any]:
        """The SIP server. Raises UsageError where there is none."""
        if self._roles.sip is None:
            raise UsageError('this machine has no SIP server: add "sip" to roles in dnat.toml, then down and up')
        return self._roles.sip.describe()
