"""The router role: follows the lease store and keeps the data plane's owner map."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from dnat.config import RouterSettings
from dnat.daemon import attachments
from dnat.daemon.changes import keep_repaired
from dnat.daemon.fast_path import FastPath
from dnat.daemon.owners import describe_owner
from dnat.daemon.privileged import Privileged
from dnat.daemon.server import LEARN_SECONDS
from dnat.dataplane import loader
from dnat.dataplane.attach import Direction
from dnat.dataplane.router import Offence, RouterPlane
from dnat.errors import DnatError
from dnat.instance import Instance
from dnat.leases.bitmap import union
from dnat.leases.records import Change, DropLease, LeaseRecord, PutLease
from dnat.store import PublishedPool
from dnat.store.base import many_records
from dnat.system import links
from dnat.system.router import ensure_router_network
from dnat.system.router_rules import SharedAddress
from dnat.types import Owner, PortRange, Protocol

if TYPE_CHECKING:
    from dnat.daemon.metrics import Measured

log = logging.getLogger(__name__)

REFILL_SECONDS = 10.0
RESOLVE_SECONDS = 0.2
"""How soon a host has answered who asks for its link address."""

OffenceHandler = Callable[[IPv4Address, IPv4Address, int, Protocol], None]
"""Sender's LAN address, external address, port, protocol."""


class RouterRole:
    """Router data plane between one LAN and one WAN interface."""

    def __init__(
        self,
        instance: Instance,
        settings: RouterSettings,
        privileged: Privileged,
        externals: Sequence[IPv4Address],
        leasable: tuple[PortRange, ...],
        offence: OffenceHandler,
    ) -> None:
        assert settings.lan is not None and settings.wan is not None
        self._pins = instance.pins("router")
        self._lan, self._wan = settings.lan, settings.wan
        self._own_ports = PortRange.parse(settings.own_ports)
        self._fast_path = FastPath(settings.xdp, self._pins)
        self._privileged = privileged
        self._externals = externals
        self._leasable = leasable
        self._offence = offence
        self._owners: dict[int, Owner] = {}
        self._tasks: list[asyncio.Task[Any]] = []
        self._keep = self._settling = False
        self._plane: RouterPlane
        # The privileged thread learns addresses while the event loop carries in leases.
        self._plane_lock = threading.Lock()

    async def start(self, records: Sequence[LeaseRecord], *, keep: bool = False) -> None:
        """Load and fill the data plane, then let packets through it. Raises DnatError.

        ``keep``: the records may be outdated, or not all, so owners that the maps have beyond them stay until `refill`
        or `settle`.
        """
        self._own(records)
        self._keep = keep
        await asyncio.to_thread(loader.ensure_loaded, "router", self._pins)
        self._plane = RouterPlane.open(self._pins)
        await self._privileged.run(self._fill)
        await self._privileged.run(self._ensure)
        asyncio.get_running_loop().add_reader(self._plane.fileno(), self._offended)
        self._tasks = [asyncio.create_task(keep_repaired(self._repair))]

    async def stop(self) -> None:
        """End the tasks; the data plane stays: ``down`` removes it."""
        asyncio.get_running_loop().remove_reader(self._plane.fileno())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._plane.close()

    def settle(self, seconds: float) -> None:
        """After so many seconds, forget owners that no lease has made known."""

        async def wait_and_forget() -> None:
            await asyncio.sleep(seconds)
            self._keep = self._settling = False
            await self._privileged.run(self._fill)

        self._settling = True
        self._start(wait_and_forget())

    def summary(self) -> str:
        """What this router does, in one line."""
        return f"routing {self._lan} to {self._wan} ({self.describe()['path'].upper()})"

    def describe(self) -> dict[str, str]:
        """The part ``router`` of ``show -o json``."""
        reason = self._fast_path.reason
        return {"lan": self._lan, "wan": self._wan, "path": "tc" if reason else "xdp", "reason": reason}

    def refill(self, pool: PublishedPool, records: Sequence[LeaseRecord], lost: bool, done: Callable[[], None]) -> None:
        """The pool has changed, or changes were missed: this is how it is. ``done`` is called when the maps have it.

        ``lost``: the store is new, so owners beyond these stay until hosts have had the time to register.
        """
        self._externals, self._leasable = pool.addresses, pool.ports
        self._own(records)
        if lost:
            self.settle(LEARN_SECONDS)
        self._keep = self._settling
        self._start(self._refill(done))

    async def _refill(self, done: Callable[[], None]) -> None:
        filled = False
        while True:
            try:
                if not filled:
                    await self._privileged.run(self._fill)
                    filled = True
                    done()
                for changed in await self._privileged.run(self._ensure):
                    log.info("%s", changed)
                return
            except DnatError as error:
                log.error("%s", error)
                await asyncio.sleep(REFILL_SECONDS)

    def describe_owners(self) -> list[dict[str, Any]]:
        """The owners for ``show``."""
        return [describe_owner(owner) for owner in self._owners.values()]

    @property
    def external_addresses(self) -> tuple[IPv4Address, ...]:
        return tuple(self._externals)

    def follow(self, changes: Sequence[Change]) -> None:
        """Carry committed changes of the leases into the owner map: the store calls this before an answer leaves."""
        add, remove = [], []
        for change in changes:
            match change:
                case PutLease(record) if record.address in self._externals:
                    owner, former = _owner(record), self._owners.get(record.id)
                    self._owners[record.id] = owner
                    if owner != former:
                        add.append(owner)
                case DropLease(lease_id):
                    if former := self._owners.pop(lease_id, None):
                        remove.append(former)
                case _:
                    pass
        if add or remove:
            with self._plane_lock:
                self._plane.apply(add, remove)
        if add:
            self._start(self._learn_macs())

    def _own(self, records: Sequence[LeaseRecord]) -> None:
        with many_records():
            self._owners = {record.id: _owner(record) for record in records if record.address in self._externals}

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(asyncio.create_task(work))

    @property
    def counters(self) -> dict[str, int]:
        return self._plane.counters()

    def measure(self, into: Measured) -> None:
        """Figures of this role."""
        into.packets["router"] = self.counters
        into.owned = dict.fromkeys(map(str, self._externals), 0)
        for address in self._externals:
            ranges = {owner.ports for owner in self._owners.values() if owner.address == address}
            into.owned[str(address)] = union(ranges).bit_count()

    def _fill(self) -> None:
        self._configure()
        with self._plane_lock:
            owners = list(self._owners.values())
            if self._keep:
                self._plane.apply(add=owners)
            else:
                self._plane.set_owners(owners)
        self._learn()

    def _configure(self) -> list[str]:
        """Tell the data plane of interfaces, addresses and MTUs; says so if they are not what they were."""
        lan, wan = links.interface(self._lan), links.interface(self._wan)
        shared = {one.address: one.own for one in self._shared()}
        with self._plane_lock:
            changed = self._plane.configure(lan.index, wan.index, shared)
        return [f"the data plane follows a change of {self._lan} or {self._wan}"] if changed else []

    def _ensure(self) -> list[str]:
        """Compare network and attachments with what they should be, and repair. Runs in the privileged thread."""
        journal, shared = self._privileged.journal, self._shared()
        own = any(one.own for one in shared)
        changes = self._configure()
        changes += ensure_router_network(journal, self._lan, self._wan, shared, self._own_ports if own else None)
        hooks: list[tuple[str, str, Direction]] = [
            ("router_wan" if links.interface(self._wan).mac else "router_wan_l3", self._wan, "ingress"),
            ("router_lan", self._lan, "ingress"),
        ]
        if own:
            hooks.append(("router_loop", "lo", "egress"))
        for hook in hooks:
            changes += attachments.ensure_attached(journal, self._pins, *hook)
        loader.forget_other_versions(self._pins)
        lan, wan = links.interface(self._lan), links.interface(self._wan)
        return changes + self._fast_path.ensure(journal, self._plane, lan, wan)

    def _shared(self) -> list[SharedAddress]:
        local = {address.ip for link in links.interfaces() if link.name != "lo" for address in link.addresses}
        return [SharedAddress(address, address in local, self._leasable) for address in self._externals]

    def _offended(self) -> None:
        self._start(self._report_offences())

    async def _report_offences(self) -> None:
        for offence in await self._privileged.run(self._plane.drain_offences):
            log.warning("%s (%s) sent from port %d, which is not its own", offence.host, offence.mac, offence.port)
            if offence.host is not None:
                self._offence(offence.host, offence.address, offence.port, _protocol(offence))

    async def _learn_macs(self) -> None:
        await self._privileged.run(self._learn)
        if await self._privileged.run(self._ask):
            await asyncio.sleep(RESOLVE_SECONDS)
            await self._privileged.run(self._learn)

    def _learn(self) -> None:
        with self._plane_lock:
            self._plane.learn_macs()

    def _ask(self) -> bool:
        with self._plane_lock:
            return self._plane.ask_for_macs()

    async def _repair(self) -> list[str]:
        """Repair what others undid, and learn link addresses that were not known yet."""
        changes: list[str] = await self._privileged.run(self._ensure)
        await self._learn_macs()
        return changes


def _owner(record: LeaseRecord) -> Owner:
    return Owner(record.address, record.ports, record.protocol, record.host)


def _protocol(offence: Offence) -> Protocol:
    try:
        return Protocol(offence.protocol)
    except ValueError:
        return Protocol.ANY
