"""The server role: PAP datagrams in, durable leases, answers out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any

from dnat.config import ServerSettings, port_ranges
from dnat.daemon.agreement import X25519Agreement
from dnat.daemon.alarm import Alarm
from dnat.daemon.clock import SteadyClock
from dnat.daemon.owners import describe_owner
from dnat.daemon.pap_socket import PapSocket
from dnat.daemon.sharing import Sharing
from dnat.errors import DnatError
from dnat.leases.errors import LeaseConflict
from dnat.leases.pool import Pool
from dnat.leases.records import LeaseRecord
from dnat.leases.table import LeaseTable
from dnat.pap.answers import Step
from dnat.pap.guard import Guard, Limits, Mode
from dnat.pap.keyring import KeyChange, Keyring
from dnat.pap.limits import Rate
from dnat.pap.messages import SERVER_PORT, Result
from dnat.pap.policy import Policy, Reservation
from dnat.pap.server import Server
from dnat.store import KeyStore, Period, SharedStore, State, Store, StoreConflict, StoreError, Tenure
from dnat.types import PortRange, Protocol

if TYPE_CHECKING:
    from dnat.daemon.metrics import Measured

log = logging.getLogger(__name__)

STORE_RETRY_SECONDS = 1.0
GRACE_SECONDS = 10.0
"""How long a lease that ran out can still be renewed: clocks differ, and a renewal may be under way."""
LEARN_SECONDS = 10.0
"""How long a server that lost its leases lets hosts register theirs before it grants others."""
CLOCK_WATCH_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class LanAddress:
    """Where a server listens."""

    interface: str
    ip: IPv4Address
    network: IPv4Network


class ServerRole:
    """Owns the store, the lease table and the server's socket.

    A step of the protocol core is a transaction of the store and the datagrams that it permits. Steps that gather while
    a commit is under way share the next one. When the store cannot be written, the table goes back to what the
    store holds, and the hosts are told STORE-FAILED. When another server was first, what rests on the table as it was
    is decided again.
    """

    def __init__(
        self,
        settings: ServerSettings,
        store: Store,
        key_store: KeyStore,
        lan: LanAddress,
        clock: SteadyClock,
        first_start: Callable[[float], float] = lambda now: now,
    ) -> None:
        """``first_start``: given the time, says when this machine became a server (`Instance.first_start`); lease
        state that is younger has replaced one that was lost. By default it has never been one.
        """
        networks = tuple(IPv4Network(text) for text in settings.networks) or (lan.network,)
        self._lan = lan
        self._clock = clock
        self._store = store
        self._key_store = key_store
        self._mode = Mode(settings.authentication)
        self._limits = Limits(
            host=Rate(settings.requests_per_second, 5 * settings.requests_per_second),
            leases=Rate(settings.new_leases_per_second, 2 * settings.new_leases_per_second),
        )
        self._policy = Policy(
            networks=networks,
            lifetime=settings.lifetime,
            max_leases_per_host=settings.leases_per_host,
            max_ports_per_host=settings.ports_per_host,
            reservations=tuple(
                Reservation(PortRange.parse(each.ports), frozenset(each.hosts), each.permanent)
                for each in settings.reserved
            ),
        )
        self._pool = pool(settings)
        self._remember_first_start = first_start
        self._first_start = 0.0
        self._hold_down = float(settings.hold_down)
        self._alarm = Alarm(self._tick, clock)
        self._steps: list[Step] = []
        self._work = asyncio.Event()
        self._committer: asyncio.Task[None] | None = None
        self._clock_watch: asyncio.TimerHandle | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._sharing = Sharing(store, key_store, lambda: self._core, clock)
        self._sharing.take, self._sharing.decided = self._take, self._pump
        self._core: Server
        self._guard: Guard
        self._epoch_start = 0.0
        self._socket: PapSocket

    async def load(self) -> tuple[LeaseRecord, ...]:
        """Open the store and take up what it holds. Raises StoreError."""
        now = self._clock()
        state, keys = await self._store.open(now), await self._key_store.open()
        keyring = Keyring(_draw, keys.records)
        self._guard = Guard(self._mode, keyring, keys.cookie_secret, X25519Agreement, now, self._limits)
        self._epoch_start = state.epoch_start
        # Only now: a store that this very start has made is no younger.
        self._first_start = self._remember_first_start(self._clock())
        self._core = Server(self._table(state), _draw, self._policy, state.epoch_start, self._guard)
        if self.learning:
            log.warning("the lease store is new: for %.0f s hosts register what they hold", self.learning)
        network = self._lan.network
        self._core.begin(self._clock(), () if network.prefixlen > 30 else (network.broadcast_address,), self.learning)
        self._sharing.reloaded()
        return state.records

    @property
    def learning(self) -> float:
        """Seconds for which hosts still register what they hold: the leases were lost."""
        lost = self._epoch_start > self._first_start
        return max(0.0, self._epoch_start + LEARN_SECONDS - self._clock()) if lost else 0.0

    async def listen(self) -> None:
        """Open the socket: from here on hosts are served. Raises PlatformError."""
        self._socket = await PapSocket.open(self._lan.ip, SERVER_PORT, self._received, self._lan.interface, self._pump)
        self._committer = asyncio.create_task(self._commit())
        self._watch_clock()
        if strays := self._core.invalidate_strays(self._clock()):
            log.warning("took back %d leases that the configured pool does not have", strays)
        self._tick()

    async def stop(self) -> None:
        """Stop serving; what was promised is durable already."""
        self._alarm.set(None)
        if self._clock_watch is not None:
            self._clock_watch.cancel()
        self._socket.close()
        if self._committer is not None:
            self._committer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._committer
        await self._store.close()
        await self._key_store.close()

    def summary(self) -> str:
        """What this server does, in one line."""
        addresses = ", ".join(str(address) for address in self._pool.addresses)
        leases = f"{len(self._core.table)} leases"
        return f"serving ports of {addresses} at {self._lan.ip}, {leases}, {self._mode.value}{self._drain_state()}"

    def _drain_state(self) -> str:
        drained = ", ".join(map(str, self._core.table.drained))
        return ", draining" if self._core.decisions.draining else f", draining {drained}" if drained else ""

    @property
    def external_addresses(self) -> tuple[IPv4Address, ...]:
        return self._pool.addresses

    @property
    def counters(self) -> dict[str, int]:
        return dict(self._core.counters + self._socket.counters)

    def now(self) -> float:
        """The clock of leases and keys: seconds since 1970."""
        return self._clock()

    @property
    def keyring(self) -> Keyring:
        return self._guard.keyring

    async def change_keys(self, changes: tuple[KeyChange, ...]) -> None:
        """Make changes of the keyring durable. Raises StoreError."""
        self._core.change_keys(changes, self._clock())
        await self._durable()

    def leases_of(self, host_ids: Iterable[bytes]) -> list[int]:
        """The leases of hosts."""
        return [record.id for host_id in host_ids for record in self._core.table.of_host(host_id)]

    def records(self) -> Sequence[LeaseRecord]:
        """Every lease that stands."""
        return tuple(self._core.table)

    def offence(self, host: IPv4Address, address: IPv4Address, port: int, protocol: Protocol) -> None:
        """A host sent from a port that is not its own: tell it (rate-limited by the core)."""
        self._core.offence(host, address, port, protocol, self._clock())
        self._pump()

    async def invalidate(self, lease_ids: Sequence[int], reason: Result, text: str | None = None) -> None:
        """Take leases back; returns when that is durable and the hosts have been told once. Raises StoreError."""
        self._core.invalidate(lease_ids, reason, self._clock(), text)
        await self._durable()

    async def drain(self, addresses: frozenset[IPv4Address] | None) -> int:
        """Grant nothing new, or nothing of some addresses, whose leases are taken back; returns how many were.

        None ends draining of either kind. Raises StoreError.
        """
        self._core.decisions.draining = addresses is not None and not addresses
        taken = self._core.drain(addresses or frozenset(), self._clock())
        await self._durable()
        return taken

    def measure(self, into: Measured) -> None:
        """Figures of this role."""
        table, keyring = self._core.table, self.keyring
        into.messages["server"] = self.counters
        into.leases["server"] = [
            (str(each.address), each.purpose, each.protocol, len(each.ports)) for each in self.records()
        ]
        ports = sum(len(each) for each in self._pool.ranges)
        into.pool = {str(address): ports for address in self._pool.addresses}
        into.holds = len(table.holds)
        into.keys = dict(Counter(record.state.value for record in keyring))
        into.epoch_start = self._epoch_start
        if isinstance(self._store, SharedStore):
            into.store_reachable = self._store.reachable

    async def tenures(self, period: Period) -> list[Tenure]:
        """What the log of blocks says. Raises StoreError."""
        return await self._store.tenures(period)

    def name_of(self, host_id: bytes) -> str | None:
        """What the host's key is called, if it has one."""
        return next((record.name for record in self.keyring.of_host(host_id)), None)

    def describe_leases(self) -> list[dict[str, Any]]:
        """The leases for ``show``."""
        now = self._clock()
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
        return [describe_owner(record) for record in self.records()]

    def _table(self, state: State) -> LeaseTable:
        table = LeaseTable(self._pool, hold=self._hold_down, grace=GRACE_SECONDS)
        try:
            table.load(state.records, state.holds)
        except LeaseConflict as error:
            raise StoreError(
                f"the lease store contradicts itself: {error}. Nothing was changed. Restore it from a backup, or"
                " move it away: hosts then register again what they hold"
            ) from None
        return table

    def _received(self, datagram: bytes, source: tuple[IPv4Address, int]) -> None:
        self._core.receive(datagram, source, self._clock())

    def _watch_clock(self) -> None:
        self._clock.watch()
        self._clock_watch = asyncio.get_running_loop().call_later(CLOCK_WATCH_SECONDS, self._watch_clock)

    def _tick(self) -> None:
        self._core.timeout(self._clock())
        self._pump()

    def _pump(self) -> None:
        self._steps += self._core.steps()
        if self._steps:
            self._work.set()
        self._alarm.set(self._core.next_deadline)

    async def _durable(self) -> None:
        """Wait until everything decided so far is durable. Raises StoreError."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._pump()
        self._work.set()
        await waiting

    def _take(self) -> list[Step]:
        steps, self._steps = self._steps, []
        return steps

    async def _commit(self) -> None:
        """Make steps durable in their order, then let their datagrams go."""
        while True:
            await self._work.wait()
            self._work.clear()
            self._sharing.begin()
            steps = self._take()
            waiting, self._waiting = self._waiting, []
            keys = [change for step in steps for change in step.keys]
            changes = [change for step in steps for change in step.changes]
            try:
                if keys:
                    await self._key_store.transact(keys)
                if changes:
                    try:
                        self._sharing.check()
                        await self._store.transact(changes)
                    except StoreConflict:
                        await self._sharing.overtaken(steps)
                        self._waiting = waiting + self._waiting
                        self._work.set()
                        continue
            except Exception as error:
                # Whatever it was, and be it a follower of the store that failed: nobody else makes leases durable.
                log.error("%s", error, exc_info=not isinstance(error, DnatError))
                for each in waiting:
                    if not each.done():
                        each.set_exception(error)
                await self._fall_back(steps)
                continue
            now = self._clock()
            for step in steps:
                for datagram, to in step.datagrams:
                    self._socket.send(datagram, to)
                self._core.committed(step, now)
            for each in waiting:
                if not each.done():
                    each.set_result(None)
            self._sharing.end()
            self._pump()

    async def _fall_back(self, steps: list[Step]) -> None:
        """The store refused: go back to what it holds. Until it can be read, everything is refused."""
        while True:
            self._refuse(steps)
            try:
                state, keys = await self._store.open(self._clock()), await self._key_store.open()
                table = self._table(state)
            except DnatError as error:
                log.error("%s", error)
                await asyncio.sleep(STORE_RETRY_SECONDS)
                steps = self._take()
                continue
            # What came meanwhile was decided on a table that never was. Nothing is awaited from here on.
            self._refuse(self._take())
            self._core.reset_table(table, self._clock())
            self._guard.keyring = Keyring(_draw, keys.records)
            self._sharing.reloaded()
            self._pump()
            return

    def _refuse(self, steps: list[Step]) -> None:
        for step in steps:
            self._core.failed(step, self._clock())
        for step in self._core.steps():
            for datagram, to in step.datagrams:
                self._socket.send(datagram, to)


def _draw() -> int:
    return int.from_bytes(os.urandom(8))  # what `secrets` does, in a third of the time


def pool(settings: ServerSettings) -> Pool:
    """The ports that a configuration puts into the pool."""
    return Pool(
        addresses=tuple(IPv4Address(text) for text in settings.external_addresses),
        ports=port_ranges(settings.ports, "configuration", "server.ports"),
        specific=port_ranges(settings.specific_ports, "configuration", "server.specific_ports"),
        reserved=tuple(PortRange.parse(each.ports) for each in settings.reserved),
        excluded=port_ranges(settings.excluded_ports, "configuration", "server.excluded_ports"),
    )
