"""The daemon of one instance: takes up its roles, says that it is ready, runs until told to stop.

SIGTERM ends the daemon and leaves data plane, addresses and routes in place, so that it can be restarted or upgraded
without losing a packet; ``dnatctl down`` ends it and then undoes everything.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from dnat import pid_file
from dnat.config import Config
from dnat.daemon import wan_address
from dnat.daemon.api import ApiServer
from dnat.daemon.clock import SteadyClock
from dnat.daemon.host_methods import HostMethods
from dnat.daemon.key_methods import KeyMethods
from dnat.daemon.lease_methods import LeaseMethods
from dnat.daemon.privileged import Privileged
from dnat.daemon.view_methods import Roles, ViewMethods, measure
from dnat.dataplane import loader
from dnat.errors import DnatError, PlatformError, error_kind
from dnat.instance import Instance
from dnat.system import links
from dnat.system.journal import Journal
from dnat.teardown import tear_down

if TYPE_CHECKING:
    from dnat.daemon.metrics import MetricsServer
    from dnat.daemon.server import LanAddress

log = logging.getLogger(__name__)

AGAIN_SECONDS = 3

COLLECTIONS = (20_000, 20, 100)
"""Objects until the youngest are looked at, and how often that happens until older ones are (gc.set_threshold)."""

TURN = 0.0005
"""Seconds that a thread waits for Python's lock before it demands it. The one that makes leases durable needs it anew
after each statement: at the usual 5 ms a busy event loop makes every commit, and so every answer, late.
"""


_M_ARENA_MAX = -8
"""malloc.h"""


class ToldToEndError(DnatError):
    """SIGTERM or SIGINT came while the roles were being taken up."""


class Daemon:
    """Joins the roles of one configuration."""

    def __init__(self, instance: Instance, config: Config) -> None:
        self._instance = instance
        self._config = config
        self._privileged = Privileged(Journal(instance.journal))
        self._stopping = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._release = False
        self._roles = roles = Roles(tuple(config.roles))
        self._metrics: MetricsServer | None = None
        views = ViewMethods(instance.name, roles)
        ports = HostMethods(lambda: roles.host, lambda: roles.programs, roles.names)
        self._api = roles.api = ApiServer(
            instance.socket,
            readers={"show": views.show, "status": views.status, "sip": views.sip, "metrics": views.metrics},
            writers={
                "stop": self._stop,
                **ports.methods(),
                **KeyMethods(instance, lambda: roles.server, lambda: roles.host).methods(),
                **LeaseMethods(lambda: roles.server).methods(),
            },
            watchers=ports.watchers(),
            programs=ports.programs(),
            group=config.api.group,
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
            raise ToldToEndError("told to end before it was up") from None
        finally:
            self._starting = None
        return "; ".join(self._roles.summaries())

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
            from dnat.daemon.host import HostRole
            from dnat.daemon.programs import Programs

            self._roles.host = host = HostRole(self._instance, self._config.host, self._privileged)
            self._roles.programs = Programs(self._config.api, self._instance.programs, host)
            await host.start()
            if "sip" in self._config.roles:
                from dnat.daemon.sip import SipRole

                self._roles.sip = SipRole(self._instance, self._config.sip, host, self._privileged)
                await self._roles.sip.start()
        if (listen := self._config.metrics.endpoint) is not None:
            from dnat.daemon.metrics import MetricsServer

            self._metrics = MetricsServer(listen, lambda: measure(self._roles), self._config.roles)
        await self._api.start()
        if self._roles.programs is not None:
            self._roles.programs.adopt()

    async def run(self, *, follow_wan: bool = False) -> bool:
        """Wait for SIGTERM, SIGINT or ``stop``, then end in good order.

        Returns whether it ended because the machine is connected in another way: a host's interface, address or gateway
        is not what it was, or the address of the WAN, which it waits for with ``follow_wan``.
        """
        waiting: set[asyncio.Task[Any]] = {asyncio.create_task(self._stopping.wait())}
        if self._roles.host is not None:
            waiting.add(asyncio.create_task(self._roles.host.moved.wait()))
        if follow_wan:
            waiting.add(asyncio.create_task(wan_address.changed(self._config, self._privileged)))
        _, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        moved = not self._stopping.is_set()
        await self.stop()
        return moved

    async def stop(self) -> None:
        """End the roles; the data plane stays."""
        roles = self._roles
        self._api.stop()
        if self._release and roles.programs is not None:
            roles.programs.say_goodbye()
        if roles.sip is not None:
            await roles.sip.stop()
        if self._metrics is not None:
            await self._metrics.stop()
        if roles.host is not None:
            await roles.host.stop(release=self._release)
        if roles.clustered is not None:
            await roles.clustered.stop(leave=self._release)
        if roles.router is not None:
            await roles.router.stop()
        if roles.server is not None:
            await roles.server.stop()

    def close(self) -> None:
        """Wait for changes of the machine that are under way, however the daemon ends."""
        self._privileged.close()

    async def _start_server(self) -> None:
        """Server, and router beside it: routers know of a lease before the host that holds it does."""
        from dnat.store.base import many_records

        with many_records():
            await self._start_server_and_router()

    async def _start_server_and_router(self) -> None:
        from dnat.daemon.router import RouterRole
        from dnat.daemon.server import ServerRole, pool
        from dnat.store import SqliteKeyStore, SqliteStore

        settings = self._config.server
        lan = await self._privileged.run(_server_address, self._config)
        leasable = pool(settings)
        clock = SteadyClock(self._instance.clock)
        first_start = self._instance.first_start
        if self._config.store.kind == "etcd":
            from dnat.daemon import clustered

            self._roles.server = server = clustered.server(self._config, leasable, lan, clock, first_start)
            await server.load()
            if "router" in self._config.roles:
                await self._start_router()
            await server.listen()
            return
        store = SqliteStore(self._instance.store, settings.retention_days * 86400.0)
        self._roles.server = server = ServerRole(
            settings, store, SqliteKeyStore(self._instance.key_store), lan, clock, first_start
        )
        records = await server.load()
        if "router" in self._config.roles:
            self._roles.router = router = RouterRole(
                self._instance,
                self._config.router,
                self._privileged,
                leasable.addresses,
                leasable.ranges,
                server.offence,
            )
            learning = server.learning
            await router.start(records, keep=learning > 0)
            if learning:
                router.settle(learning)
            store.watch(router.follow)
        await server.listen()

    async def _start_router(self) -> None:
        """A router that follows a store which it shares with servers on other machines."""
        from dnat.daemon.clustered import ClusteredRouter

        self._roles.clustered = clustered = await ClusteredRouter.start(self._instance, self._config, self._privileged)
        self._roles.router = clustered.role

    async def _stop(self, release: bool = False) -> dict[str, Any]:
        self._release = release
        asyncio.get_running_loop().call_later(0.05, self._stopping.set)
        return {"pid": os.getpid()}


def _server_address(config: Config) -> LanAddress:
    """The LAN address to serve. Raises PlatformError."""
    from dnat.daemon.server import LanAddress

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


def _tell_allocator(function: str, *arguments: int) -> None:
    """Call a function of glibc's malloc.h, where the C library has it."""
    if (found := getattr(ctypes.CDLL(None), function, None)) is not None:
        found(*arguments)


def _spare_collections() -> None:
    """A server's leases are many, and hardly any garbage is cyclic: to look through them all takes tens of ms. What the
    start left goes back to the kernel, where the C library can tell it to.
    """
    gc.collect()
    gc.freeze()
    _tell_allocator("malloc_trim", 0)
    gc.set_threshold(*COLLECTIONS)


async def _serve(instance: Instance, config: Config, readiness: Readiness) -> bool:
    """Be up until told to stop; whether to start anew, with what the machine looks like by then."""
    daemon = Daemon(instance, await asyncio.to_thread(wan_address.resolve, config))
    try:
        summary = await daemon.start()
        log.info("up: %s", summary)
        _spare_collections()
        sys.setswitchinterval(TURN)
        readiness.tell(summary=summary)
        return await daemon.run(follow_wan=wan_address.follows(config))
    finally:
        daemon.close()


def _serve_again(instance: Instance, config: Config, readiness: Readiness) -> bool:
    """Serve; once it has been up, try until it can be up again. Returns whether to start anew."""
    while True:
        try:
            return asyncio.run(_serve(instance, config, readiness))
        except DnatError as error:
            if not readiness.up or isinstance(error, ToldToEndError):
                raise
            log.warning("%s; trying again in %d s", error, AGAIN_SECONDS)
        # What was left half made has sockets, and those have to be closed.
        gc.unfreeze()
        gc.collect()
        time.sleep(AGAIN_SECONDS)


def _serve_or_undo(instance: Instance, config: Config, readiness: Readiness) -> None:
    """A daemon that does not come up leaves the machine as it was: untouched, or with its forerunner's data plane."""
    fresh = not Journal(instance.journal).entries
    try:
        while _serve_again(instance, config, readiness):
            log.info("starting anew")
    except BaseException:
        if fresh and not readiness.up:
            for problem in tear_down(instance, keep_log=True):
                log.error("%s", problem)
        raise


def run(config: Config, pipe: int | None = None) -> int:
    """Be the daemon of the current network namespace until told to stop; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # A heap for each thread costs 0.7 MB; Python's lock lets them allocate one after the other anyway.
    _tell_allocator("mallopt", _M_ARENA_MAX, 1)
    readiness = Readiness(pipe)
    instance = Instance.current()
    try:
        with pid_file.lock(instance.pid_file):
            _serve_or_undo(instance, config, readiness)
    except DnatError as error:
        return _failed(error, readiness)
    except OSError as error:
        if error.filename is None:
            raise
        return _failed(PlatformError(f"{error.filename} cannot be used: {error.strerror}"), readiness)
    return 0


def _failed(error: DnatError, readiness: Readiness) -> int:
    log.error("%s", error)
    readiness.tell(error=error)
    return error.exit_code
