"""The daemon of one instance: takes up its roles, says that it is ready, runs until told to stop.

SIGTERM ends the daemon and leaves data plane, addresses and routes in place, so that it can be restarted or upgraded
without losing a packet; ``dnatctl down`` ends it and then undoes everything.
"""

from __future__ import annotations

import asyncio
import enum
import json
import logging
import os
import signal
import socket
import sys
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, TypeVar

from dnat import __version__, pid_file
from dnat.config import Config
from dnat.daemon.api import ApiServer
from dnat.daemon.host import HostRole
from dnat.daemon.key_methods import KeyMethods
from dnat.daemon.lease_methods import LeaseMethods
from dnat.daemon.privileged import Privileged
from dnat.daemon.router import RouterRole
from dnat.daemon.server import LanAddress, ServerRole, pool
from dnat.daemon.sip import SipRole
from dnat.dataplane import loader
from dnat.errors import DnatError, PlatformError, UsageError, error_kind
from dnat.instance import Instance
from dnat.pap.messages import Want
from dnat.store import SqliteKeyStore, SqliteStore
from dnat.system import links
from dnat.system.journal import Journal
from dnat.teardown import tear_down
from dnat.types import Parity, PortRange, Protocol, Purpose

if TYPE_CHECKING:
    from dnat.daemon.clustered import ClusteredRouter
    from dnat.daemon.metrics import Measured, MetricsServer

log = logging.getLogger(__name__)

SCHEMA = 1

_Enum = TypeVar("_Enum", bound=enum.Enum)


class Daemon:
    """Joins the roles of one configuration."""

    def __init__(self, instance: Instance, config: Config) -> None:
        self._instance = instance
        self._config = config
        self._privileged = Privileged(Journal(instance.journal))
        self._stopping = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._release = False
        self._server: ServerRole | None = None
        self._router: RouterRole | None = None
        self._clustered: ClusteredRouter | None = None
        self._host: HostRole | None = None
        self._sip: SipRole | None = None
        self._metrics: MetricsServer | None = None
        self._api = ApiServer(
            instance.socket,
            readers={
                "show": self._show,
                "status": self._status,
                "sip": self._describe_sip,
                "metrics": self._exposition,
            },
            writers={
                "request": self._request,
                "release": self._release_leases,
                "map": self._map,
                "unmap": self._unmap,
                "stop": self._stop,
                **KeyMethods(instance, lambda: self._server, lambda: self._host).methods(),
                **LeaseMethods(lambda: self._server).methods(),
            },
        )

    async def start(self) -> str:
        """Take up the roles; returns what was obtained. Raises DnatError, also when told to end meanwhile."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        self._starting = asyncio.create_task(self._take_up_roles())
        try:
            await self._starting
        except asyncio.CancelledError:
            raise DnatError("told to end before it was up") from None
        finally:
            self._starting = None
        return "; ".join(self._summaries())

    def _end(self) -> None:
        """What SIGTERM and SIGINT do."""
        if self._starting is not None:
            self._starting.cancel()
        self._stopping.set()

    async def _take_up_roles(self) -> None:
        """In the order in which they need each other."""
        await self._privileged.run(loader.ensure_bpffs)
        if "server" in self._config.roles:
            await self._start_server()
        elif "router" in self._config.roles:
            await self._start_router()
        if "host" in self._config.roles:
            self._host = HostRole(self._instance, self._config.host, self._privileged)
            await self._host.start()
            if "sip" in self._config.roles:
                self._sip = SipRole(self._instance, self._config.sip, self._host, self._privileged)
                await self._sip.start()
        if (listen := self._config.metrics.endpoint) is not None:
            from dnat.daemon.metrics import MetricsServer

            self._metrics = MetricsServer(listen, self._measure, self._config.roles)
        await self._api.start()

    async def run(self) -> None:
        """Wait for SIGTERM, SIGINT or ``stop``, then end in good order."""
        await self._stopping.wait()
        await self.stop()

    async def stop(self) -> None:
        """End the roles; the data plane stays."""
        self._api.stop()
        if self._sip is not None:
            await self._sip.stop()
        if self._metrics is not None:
            await self._metrics.stop()
        if self._host is not None:
            await self._host.stop(release=self._release)
        if self._clustered is not None:
            await self._clustered.stop(leave=self._release)
        if self._router is not None:
            await self._router.stop()
        if self._server is not None:
            await self._server.stop()

    def close(self) -> None:
        """Wait for changes of the machine that are under way, however the daemon ends."""
        self._privileged.close()

    async def _start_server(self) -> None:
        """Server, and router beside it: routers know of a lease before the host that holds it does."""
        settings = self._config.server
        lan = await self._privileged.run(_server_address, self._config)
        leasable = pool(settings)
        if self._config.store.kind == "etcd":
            from dnat.daemon import clustered

            self._server = server = clustered.server(self._config, leasable, lan)
            await server.load()
            if "router" in self._config.roles:
                await self._start_router()
            await server.listen()
            return
        store = SqliteStore(self._instance.store, settings.retention_days * 86400.0)
        self._server = server = ServerRole(settings, store, SqliteKeyStore(self._instance.key_store), lan)
        records = await server.load()
        if "router" in self._config.roles:
            self._router = RouterRole(
                self._instance,
                self._config.router,
                self._privileged,
                leasable.addresses,
                leasable.ranges,
                server.offence,
            )
            await self._router.start(records)
            store.watch(self._router.follow)
        await server.listen()

    async def _start_router(self) -> None:
        """A router that follows a store which it shares with servers on other machines."""
        from dnat.daemon.clustered import ClusteredRouter

        self._clustered = await ClusteredRouter.start(self._instance, self._config, self._privileged)
        self._router = self._clustered.role

    def _summaries(self) -> list[str]:
        return [role.summary() for role in (self._server, self._router, self._host, self._sip) if role is not None]

    async def _describe_sip(self) -> dict[str, Any]:
        if self._sip is None:
            raise UsageError('this machine has no SIP server: add "sip" to roles in dnat.toml, then down and up')
        return self._sip.describe()

    async def _status(self) -> dict[str, Any]:
        return {
            "instance": self._instance.name,
            "version": __version__,
            "pid": os.getpid(),
            "roles": list(self._config.roles),
            "summary": self._summaries(),
            "host_id": self._host.host_id.hex() if self._host is not None else None,
        }

    async def _show(self) -> dict[str, Any]:
        """The document of ``show -o json`` (docs/show.md)."""
        addresses: dict[IPv4Address, None] = {}
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "instance": self._instance.name,
            "roles": list(self._config.roles),
            "external_addresses": [],
            "leases": [],
            "bindings": [],
            "owners": [],
            "counters": {},
            "pap": {},
        }
        if self._server is not None:
            addresses |= dict.fromkeys(self._server.external_addresses)
            document["leases"] += self._server.describe_leases()
            document["owners"] += self._server.describe_owners()
            document["pap"]["server"] = self._server.counters
        if self._host is not None:
            addresses |= dict.fromkeys(self._host.external_addresses)
            if self._server is None:
                document["leases"] += self._host.describe_leases()
            document["bindings"] += self._host.describe_bindings()
            document["pap"]["agent"] = self._host.pap_counters
            document["counters"] |= self._host.counters
        if self._router is not None:
            if self._server is None:
                addresses |= dict.fromkeys(self._router.external_addresses)
                document["owners"] += self._router.describe_owners()
            document["counters"] |= self._router.counters
            document["router"] = self._router.describe()
        if self._clustered is not None:
            document["router"]["store"] = self._clustered.describe()
        document["external_addresses"] = [str(address) for address in addresses]
        return document

    async def _measure(self) -> Measured:
        from dnat.daemon.metrics import Measured

        measured = Measured()
        if self._server is not None:
            self._server.measure(measured)
        if self._host is not None:
            self._host.measure(measured)
        if self._router is not None:
            measured.packets["router"] = self._router.counters
        return measured

    async def _exposition(self) -> dict[str, Any]:
        from dnat.daemon.metrics import exposition

        return {"text": exposition(await self._measure(), self._config.roles)}

    async def _request(
        self,
        count: int = 1,
        first: int | None = None,
        protocol: str = "any",
        parity: str = "any",
        exact: bool = False,
        lifetime: int = 0,
    ) -> dict[str, Any]:
        want = Want(
            count=count,
            protocol=_named(Protocol, protocol),
            purpose=Purpose.EXPLICIT,
            parity=_named(Parity, parity),
            exact=exact,
            first=first,
            lifetime=lifetime,
        )
        return await self._need_host().request(want)

    async def _release_leases(self, ids: list[str] | None = None, ports: list[str] | None = None) -> dict[str, Any]:
        host = self._need_host()
        wanted = [int(text, 16) for text in ids or []]
        wanted += host.lease_ids([PortRange.parse(text) for text in ports or []])
        return {"released": await host.release(wanted)}

    async def _map(self, protocol: str, local_port: int, port: int | None = None) -> dict[str, Any]:
        return await self._need_host().map(_named(Protocol, protocol), _port(local_port), port and _port(port))

    async def _unmap(self, protocol: str, local_port: int) -> dict[str, Any]:
        return await self._need_host().unmap(_named(Protocol, protocol), _port(local_port))

    async def _stop(self, release: bool = False) -> dict[str, Any]:
        self._release = release
        asyncio.get_running_loop().call_later(0.05, self._stopping.set)
        return {"pid": os.getpid()}

    def _need_host(self) -> HostRole:
        if self._host is None:
            raise UsageError(
                f'this machine has the roles {", ".join(self._config.roles)}; ports are leased by a "host"'
            )
        return self._host


def _named(kind: type[_Enum], label: str) -> _Enum:
    """The member of an enumeration that has this label. Raises UsageError."""
    for member in kind:
        if member.name.lower() == label:
            return member
    raise UsageError(f"{label!r} is not one of {', '.join(member.name.lower() for member in kind)}")


def _port(number: int) -> int:
    if not 1 <= number <= 65535:
        raise UsageError(f"{number} is no port; ports are 1 to 65535")
    return number


def _server_address(config: Config) -> LanAddress:
    """The LAN address to serve. Raises PlatformError."""
    if config.server.listen:
        wanted = IPv4Address(config.server.listen)
        for link in links.interfaces():
            for address in link.addresses:
                if address.ip == wanted:
                    return LanAddress(link.name, wanted, address.network)
        raise PlatformError(f"server.listen: {wanted} is no address of this machine")
    name = config.router.lan or links.default_gateway().interface
    addresses = links.interface(name).addresses
    if not addresses:
        raise PlatformError(f"{name} has no IPv4 address yet: give it its LAN address first")
    return LanAddress(name, addresses[0].ip, addresses[0].network)


class Readiness:
    """Tells whoever started the daemon how that went: ``dnatctl up`` through a pipe, systemd through its socket."""

    def __init__(self, pipe: int | None) -> None:
        self._pipe = pipe
        self.up = False
        """Whether the daemon has come up."""

    def tell(self, *, error: DnatError | None = None, summary: str = "") -> None:
        """Say it once. Raises DnatError when whoever asked for the daemon went away meanwhile."""
        if self._pipe is not None:
            word = json.dumps({"kind": error_kind(error) if error else None, "message": str(error or summary)})
            pipe, self._pipe = self._pipe, None
            try:
                with os.fdopen(pipe, "w") as file:
                    file.write(word)
            except BrokenPipeError:
                if error is None:
                    raise DnatError("nobody waits for this daemon any more") from None
        self.up = error is None
        if error is None and (address := os.environ.get("NOTIFY_SOCKET")):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
                notify.connect(address.replace("@", "\0", 1))
                notify.send(b"READY=1\nSTATUS=" + summary.encode())


async def _serve(instance: Instance, config: Config, readiness: Readiness) -> None:
    daemon = Daemon(instance, config)
    try:
        summary = await daemon.start()
        log.info("up: %s", summary)
        readiness.tell(summary=summary)
        await daemon.run()
    finally:
        daemon.close()


def _serve_or_undo(instance: Instance, config: Config, readiness: Readiness) -> None:
    """A daemon that does not come up leaves the machine as it was: untouched, or with its forerunner's data plane."""
    fresh = not Journal(instance.journal).entries
    try:
        asyncio.run(_serve(instance, config, readiness))
    except BaseException:
        if fresh and not readiness.up:
            for problem in tear_down(instance, keep_log=True):
                log.error("%s", problem)
        raise


def run(config: Config, pipe: int | None = None) -> int:
    """Be the daemon of the current network namespace until told to stop; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    readiness = Readiness(pipe)
    instance = Instance.current()
    try:
        with pid_file.lock(instance.pid_file):
            _serve_or_undo(instance, config, readiness)
    except DnatError as error:
        log.error("%s", error)
        readiness.tell(error=error)
        return error.exit_code
    return 0
