"""The server role: PAP datagrams in, durable leases, answers out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from dnat.config import ServerSettings, port_ranges
from dnat.daemon.alarm import Alarm
from dnat.daemon.pap_socket import PapSocket
from dnat.leases.pool import Pool
from dnat.leases.records import LeaseRecord
from dnat.leases.table import LeaseTable
from dnat.pap.answers import Step
from dnat.pap.messages import SERVER_PORT, Result
from dnat.pap.server import Policy, Server
from dnat.store import State, Store, StoreError
from dnat.types import Protocol

log = logging.getLogger(__name__)

STORE_RETRY_SECONDS = 1.0


class ServerRole:
    """Owns the store, the lease table and the server's socket.

    A step of the protocol core is a transaction of the store and the datagrams that it permits. Steps that gather while
    a commit is under way share the next one. When the store cannot be written, the table goes back to what the
    store holds, and the hosts are told STORE-FAILED.
    """

    def __init__(self, settings: ServerSettings, store: Store, listen: IPv4Address, network: IPv4Network) -> None:
        networks = tuple(IPv4Network(text) for text in settings.networks) or (network,)
        self._listen = listen
        self._store = store
        self._policy = Policy(networks=networks, lifetime=settings.lifetime)
        self._pool = pool(settings)
        self._hold_down = float(settings.hold_down)
        self._alarm = Alarm(self._tick, time.time)
        self._steps: list[Step] = []
        self._work = asyncio.Event()
        self._committer: asyncio.Task[None] | None = None
        self._core: Server
        self._socket: PapSocket

    async def load(self) -> tuple[LeaseRecord, ...]:
        """Open the store and take up what it holds. Raises StoreError."""
        state = await self._store.open(time.time())
        self._core = Server(self._table(state), lambda: secrets.randbits(64), self._policy, state.epoch_start)
        return state.records

    async def listen(self) -> None:
        """Open the socket: from here on hosts are served. Raises PlatformError."""
        self._socket = await PapSocket.open(self._listen, SERVER_PORT, self._received)
        self._committer = asyncio.create_task(self._commit())
        self._take_back_strays()
        self._tick()

    async def stop(self) -> None:
        """Stop serving; what was promised is durable already."""
        self._alarm.set(None)
        self._socket.close()
        if self._committer is not None:
            self._committer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._committer
        await self._store.close()

    def summary(self) -> str:
        """What this server does, in one line."""
        addresses = ", ".join(str(address) for address in self._pool.addresses)
        return f"serving ports of {addresses} at {self._listen}, {len(self._core.table)} leases"

    @property
    def external_addresses(self) -> tuple[IPv4Address, ...]:
        return self._pool.addresses

    @property
    def counters(self) -> dict[str, int]:
        return dict(self._core.counters)

    def records(self) -> Sequence[LeaseRecord]:
        """Every lease that stands."""
        return tuple(self._core.table)

    def offence(self, host: IPv4Address, address: IPv4Address, port: int, protocol: Protocol) -> None:
        """A host sent from a port that is not its own: tell it (rate-limited by the core)."""
        self._core.offence(host, address, port, protocol, time.time())
        self._pump()

    def invalidate(self, lease_ids: Sequence[int], reason: Result) -> None:
        """Take leases back."""
        self._core.invalidate(lease_ids, reason, time.time())
        self._pump()

    def describe_leases(self) -> list[dict[str, Any]]:
        """The leases for ``show``."""
        now = time.time()
        return [
            {
                "id": f"{record.id:016x}",
                "address": str(record.address),
                "first": record.ports.first,
                "last": record.ports.last,
                "protocol": record.protocol.label,
                "purpose": record.purpose.label,
                "expires_in": max(0, round(record.expires_at - now)),
                "host": str(record.host),
            }
            for record in self.records()
        ]

    def describe_owners(self) -> list[dict[str, Any]]:
        """The owners for ``show``."""
        return [
            {
                "address": str(record.address),
                "first": record.ports.first,
                "last": record.ports.last,
                "protocol": record.protocol.label,
                "host": str(record.host),
            }
            for record in self.records()
        ]

    def _table(self, state: State) -> LeaseTable:
        table = LeaseTable(self._pool, hold=self._hold_down)
        table.load(state.records, state.holds)
        return table

    def _take_back_strays(self) -> None:
        """The configuration no longer has these addresses or ports: tell the hosts at once."""
        if strays := [record.id for record in self._core.table.strays()]:
            log.warning("%d leases are outside of the configured pool and are taken back", len(strays))
            self.invalidate(strays, Result.ADDRESS_CHANGED)

    def _received(self, datagram: bytes, source: tuple[IPv4Address, int]) -> None:
        self._core.receive(datagram, source, time.time())
        self._pump()

    def _tick(self) -> None:
        self._core.timeout(time.time())
        self._pump()

    def _pump(self) -> None:
        self._steps += self._core.steps()
        if self._steps:
            self._work.set()
        self._alarm.set(self._core.next_deadline)

    def _take(self) -> list[Step]:
        steps, self._steps = self._steps, []
        return steps

    async def _commit(self) -> None:
        """Make steps durable in their order, then let their datagrams go."""
        while True:
            await self._work.wait()
            self._work.clear()
            steps = self._take()
            changes = [change for step in steps for change in step.changes]
            try:
                if changes:
                    await self._store.transact(changes)
            except StoreError as error:
                log.error("%s", error)
                await self._fall_back(steps)
                continue
            for step in steps:
                for datagram, to in step.datagrams:
                    self._socket.send(datagram, to)
                self._core.committed(step, time.time())
            self._pump()

    async def _fall_back(self, steps: list[Step]) -> None:
        """The store refused: go back to what it holds. Until it can be read, everything is refused."""
        while True:
            self._refuse(steps)
            try:
                state = await self._store.open(time.time())
            except StoreError as error:
                log.error("%s", error)
                await asyncio.sleep(STORE_RETRY_SECONDS)
                steps = self._take()
                continue
            # What came meanwhile was decided on a table that never was. Nothing is awaited from here on.
            self._refuse(self._take())
            self._core.reset_table(self._table(state), time.time())
            self._pump()
            return

    def _refuse(self, steps: list[Step]) -> None:
        for step in steps:
            self._core.failed(step, time.time())
        for step in self._core.steps():
            for datagram, to in step.datagrams:
                self._socket.send(datagram, to)


def pool(settings: ServerSettings) -> Pool:
    """The ports that a configuration puts into the pool."""
    return Pool(
        addresses=tuple(IPv4Address(text) for text in settings.external_addresses),
        ports=port_ranges(settings.ports, "configuration", "server.ports"),
        specific=port_ranges(settings.specific_ports, "configuration", "server.specific_ports"),
    )
