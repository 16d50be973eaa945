"""The methods of the local API with which root leases and maps ports of a host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dnat.daemon.api import Method, SessionMethod
from dnat.daemon.parameters import checked
from dnat.daemon.wishes import checked_port, explicit, named
from dnat.errors import UsageError
from dnat.types import PortRange, Protocol

if TYPE_CHECKING:
    from dnat.daemon.host import HostRole
    from dnat.daemon.programs import Programs


class HostMethods:
    """``host`` and ``programs`` give what is there, or None on a machine that is no host."""

    def __init__(
        self, host: Callable[[], HostRole | None], programs: Callable[[], Programs | None], roles: tuple[str, ...]
    ) -> None:
        self._host = host
        self._programs = programs
        self._roles = roles

    def methods(self) -> dict[str, Method]:
        """All of them are root's."""
        return {"request": self._request, "release": self._release, "map": self._map, "unmap": self._unmap}

    def watchers(self) -> dict[str, SessionMethod]:
        """Every user's."""
        return {"watch": self._for_programs("watch")}

    def programs(self) -> dict[str, SessionMethod]:
        """For programs of users that may lease."""
        return {name: self._for_programs(name) for name in ("lease", "keep", "give_back")}

    def _for_programs(self, name: str) -> SessionMethod:
        async def call(session: Any, **parameters: Any) -> Any:
            programs = self._programs()
            if programs is None:
                raise self._no_host()
            method = getattr(programs, name)
            return await method(session, **checked(method, parameters, besides=1))

        return call

    async def _request(
        self,
        count: int = 1,
        first: int | None = None,
        protocol: str = "any",
        parity: str = "any",
        exact: bool = False,
        lifetime: int = 0,
    ) -> dict[str, Any]:
        return await self._need_host().request(explicit(count, first, protocol, parity, exact, lifetime))

    async def _release(self, ids: list[str] | None = None, ports: list[str] | None = None) -> dict[str, Any]:
        host = self._need_host()
        wanted = [int(text, 16) for text in ids or []]
        wanted += host.lease_ids([PortRange.parse(text) for text in ports or []])
        return {"released": await host.release(wanted)}

    async def _map(self, protocol: str, local_port: int, port: int | None = None) -> dict[str, Any]:
        wanted = None if port is None else checked_port(port)
        return await self._need_host().mapper.map(named(Protocol, protocol), checked_port(local_port), wanted)

    async def _unmap(self, protocol: str, local_port: int) -> dict[str, Any]:
        return await self._need_host().mapper.unmap(named(Protocol, protocol), checked_port(local_port))

    def _need_host(self) -> HostRole:
        host = self._host()
        if host is None:
            raise self._no_host()
        return host

    def _no_host(self) -> UsageError:
        return UsageError(f'this machine has the roles {", ".join(self._roles)}; ports are leased by a "host"')
