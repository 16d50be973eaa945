"""The sip role: leases the well-known ports, runs Kamailio on them, and keeps it so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnat.config import SipSettings
from dnat.daemon.host import HostRole
from dnat.daemon.privileged import Privileged
from dnat.errors import DnatError, PeerError, PlatformError
from dnat.instance import Instance
from dnat.pap.messages import Want
from dnat.sip import certificate, configuration, database, places, process
from dnat.sip.process import Kamailio, Listener
from dnat.system import local_sockets, sockets
from dnat.types import Protocol, Purpose

if TYPE_CHECKING:
    from dnat.daemon.metrics import Measured

log = logging.getLogger(__name__)

BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits before Kamailio is started again; it starts over after a good minute."""
GOOD_SECONDS = 60.0
CROWD_SECONDS = 0.5
"""Between two looks at who has how many TCP connections."""
CROWD_WORD_SECONDS = 10.0
"""Between two words about that in the log."""
DEFAULT_REALM = "dnat"


class SipRole:
    """Kamailio on leased ports of the host beside it."""

    def __init__(self, instance: Instance, settings: SipSettings, host: HostRole, privileged: Privileged) -> None:
        self._settings = settings
        self._host = host
        self._privileged = privileged
        self._directory = instance.run / "sip"
        self._state = instance.state / "sip"
        self._users = Path(settings.users) if settings.users else self._state / "users.sqlite"
        self._registrations = self._state / "registrations.sqlite"
        self._socket = self._directory / "rpc.sock"
        self._moved = asyncio.Event()
        self._address: IPv4Address
        self._kamailio: Kamailio | None = None
        self._hold: database.Hold | None = None
        self._restarts = 0
        self._trouble = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Lease the ports and start Kamailio. Raises DnatError."""
        try:
            await self._start_kamailio()
        except BaseException:
            self._let_go()
            raise
        self._host.on_change = self._moved.set
        self._tasks = [asyncio.create_task(each) for each in (self._supervise(), self._keep_places_free())]

    async def stop(self) -> None:
        """End Kamailio; the host role gives the ports back."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._kamailio is not None:
            await self._kamailio.stop()
        self._let_go()

    def summary(self) -> str:
        """One line."""
        ports = f"{self._settings.port}" + (f", TLS {self._settings.tls_port}" if self._settings.tls_port else "")
        state = f" ({self._trouble})" if self._trouble else ""
        return f"SIP {self._settings.mode} at {self._address} port {ports}{state}"

    def measure(self, into: Measured) -> None:
        """Figures of this role."""
        into.sip_running = self._kamailio is not None
        into.sip_restarts = self._restarts

    def describe(self) -> dict[str, Any]:
        """The result of the API's method ``sip``."""
        return {
            "mode": self._settings.mode,
            "registrar": self._settings.registrar,
            "address": str(self._address),
            "port": self._settings.port,
            "tls_port": self._settings.tls_port or None,
            "domain": self._domain,
            "realm": self._realm,
            "running": self._kamailio is not None,
            "pid": self._kamailio.pid if self._kamailio else None,
            "restarts": self._restarts,
            "trouble": self._trouble or None,
            "certificate": str(self._certificate) if self._settings.tls_port else None,
            "users": str(self._users),
            "registrations": str(self._registrations),
            "rpc": str(self._socket),
            "log": str(self._directory / "kamailio.log"),
        }

    @property
    def _domain(self) -> str:
        return self._settings.domain or str(self._address)

    @property
    def _realm(self) -> str:
        return self._settings.domain or DEFAULT_REALM

    @property
    def _certificate(self) -> Path:
        given = self._settings.certificate
        return Path(given) if given else self._state / "tls/certificate.pem"

    @property
    def _ports(self) -> list[int]:
        return [port for port in (self._settings.port, self._settings.tls_port) if port]

    def _held(self, port: int) -> IPv4Address | None:
        """The external address of which this host holds the port."""
        return next(
            (
                lease.address
                for lease in self._host.leases
                if lease.purpose is Purpose.EXPLICIT and port in lease.ports and lease.protocol is Protocol.ANY
            ),
            None,
        )

    async def _lease(self) -> IPv4Address:
        """Have all ports, of one address. Raises PeerError."""
        address = None
        for port in self._ports:
            address = self._held(port)
            if address is None:
                want = Want(count=1, protocol=Protocol.ANY, purpose=Purpose.EXPLICIT, exact=True, first=port)
                try:
                    answer = await self._host.request(want)
                except PeerError as error:
                    raise PeerError(f"no SIP server without port {port}: {error}") from None
                address = IPv4Address(answer["lease"]["address"])
        assert address is not None
        return address

    @property
    def _listeners(self) -> list[Listener]:
        address, port, tls_port = str(self._address), self._settings.port, self._settings.tls_port
        listeners = [Listener("sip", address, port), Listener("sip-tcp", address, port)]
        return listeners + ([Listener("sip-tls", address, tls_port)] if tls_port else [])

    async def _start_kamailio(self) -> None:
        """Have the ports, write what Kamailio needs, and wait until it answers on them. Raises DnatError."""
        self._address = await self._lease()
        await self._privileged.run(self._prepare)
        self._kamailio = await Kamailio.start(self._directory, self._socket, self._listeners)

    def _let_go(self) -> None:
        if self._hold is not None:
            self._hold.close()
            self._hold = None

    def _prepare(self) -> None:
        """Files that Kamailio needs, and a word in the journal for ``down``. Runs in a thread."""
        process.end_left_over(self._directory)
        self._privileged.journal.add(process.KIND, str(self._directory), directory=str(self._directory))
        for directory in (self._directory, self._state):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o750)
            process.own(directory)
        self._socket.unlink(missing_ok=True)
        database.ensure(self._users, self._registrations)
        self._hold = self._hold or database.Hold(self._users, self._registrations)
        for path in (self._users, self._registrations):
            process.own(path)
        given, key = self._settings.certificate, self._settings.key
        if self._settings.tls_port and not given:
            _, generated = certificate.ensure(self._state / "tls", self._domain, self._address)
            key = str(generated)
            process.own(generated)
        text = configuration.render(
            configuration.ServerConfiguration(
                mode=self._settings.mode,
                registrar=self._settings.registrar,
                address=self._address,
                port=self._settings.port,
                tls_port=self._settings.tls_port or None,
                domain=self._domain,
                realm=self._realm,
                certificate=self._certificate,
                key=Path(key or ""),
                users=self._users,
                registrations=self._registrations,
                rpc_socket=self._socket,
                secret=self._secret(),
                block_rate=self._settings.block_rate,
                address_rate=self._settings.address_rate,
            )
        )
        path = self._directory / "kamailio.cfg"
        path.touch(mode=0o640)
        path.write_text(text, encoding="utf-8")
        process.own(path)
        configuration.check(path)

    def _secret(self) -> str:
        """The same after a restart, so that calls that are up go on."""
        path = self._state / "secret"
        try:
            return path.read_text(encoding="ascii")
        except FileNotFoundError:
            secret = secrets.token_hex(16)
            path.touch(mode=0o600)
            path.write_text(secret, encoding="ascii")
            return secret
        except OSError as error:
            raise PlatformError(f"{path} cannot be read: {error.strerror}") from None

    async def _keep_places_free(self) -> None:
        """Nobody may take all of the server's TCP connections: see `dnat.sip.places`."""
        told_at = float("-inf")
        while True:
            await asyncio.sleep(CROWD_SECONDS)
            try:
                taken = await self._privileged.run(local_sockets.connections, self._address, self._ports)
                leaving = places.superfluous(taken, self._address)
                closed = await self._privileged.run(sockets.disconnect, self._address, leaving)
            except (DnatError, OSError) as error:
                log.warning("%s", error)
                continue
            if closed and time.monotonic() > told_at + CROWD_WORD_SECONDS:
                told_at = time.monotonic()
                log.warning("closed %d of %d TCP connections, of those who have most of them", closed, len(taken))

    async def _supervise(self) -> None:
        """Start Kamailio again when it ends, and move it when its ports are lost."""
        failures = 0
        while True:
            began = time.monotonic()
            assert self._kamailio is not None
            why = await self._until_trouble(self._kamailio)
            await self._kamailio.stop()
            self._kamailio, self._trouble = None, why
            log.warning("the SIP server %s", why)
            if time.monotonic() - began > GOOD_SECONDS:
                failures = 0
            while self._kamailio is None:
                await asyncio.sleep(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)])
                failures += 1
                try:
                    await self._start_kamailio()
                except (DnatError, OSError) as error:
                    self._trouble = str(error)
                    log.warning("the SIP server cannot be started: %s", error)
            self._restarts += 1
            self._trouble = ""
            log.info("the SIP server is up again")

    async def _until_trouble(self, kamailio: Kamailio) -> str:
        """Wait until the process ends or the ports are no longer ours; says which."""
        ended = asyncio.create_task(kamailio.wait())
        try:
            while True:
                moved = asyncio.create_task(self._moved.wait())
                await asyncio.wait({ended, moved}, return_when=asyncio.FIRST_COMPLETED)
                moved.cancel()
                if ended.done():
                    return ended.result()
                self._moved.clear()
                for port in self._ports:
                    if self._held(port) != self._address:
                        return f"lost port {port}"
        finally:
            ended.cancel()
