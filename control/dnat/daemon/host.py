"""The host role: leases ports, puts them to use, and keeps it so."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from dnat.config import HostSettings
from dnat.daemon import attachments
from dnat.daemon.announcer import Announcer
from dnat.daemon.changes import keep_repaired
from dnat.daemon.credentials import load_credentials
from dnat.daemon.ephemeral import EphemeralKeeper
from dnat.daemon.guests import GuestKeeper, Ports
from dnat.daemon.leasing import Leasing, pause_after
from dnat.daemon.losses import Losses
from dnat.daemon.mapper import Mapper
from dnat.daemon.mappings import lease_of, unmapped
from dnat.daemon.pool import PoolKeeper, low_water
from dnat.daemon.privileged import Privileged
from dnat.daemon.wishes import describe_lease
from dnat.dataplane import loader
from dnat.dataplane.attach import Direction
from dnat.dataplane.host import HostPlane, Policy
from dnat.errors import DnatError, PeerError, UsageError
from dnat.instance import Instance
from dnat.pap.messages import Want
from dnat.system import dhcp, links, sockets
from dnat.system.host import ensure_host_network
from dnat.system.links import Interface, Uplink
from dnat.types import Lease, PortRange, Protocol, Purpose

if TYPE_CHECKING:
    from dnat.daemon.metrics import Measured

log = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
RELEASE_SECONDS = 1.5


class HostRole:
    """PAP agent and host data plane of one LAN interface."""

    def __init__(self, instance: Instance, settings: HostSettings, privileged: Privileged) -> None:
        self._instance = instance
        self._pins = instance.pins("host")
        self._settings = settings
        self._privileged = privileged
        self._lacking = asyncio.Event()
        self.moved = asyncio.Event()
        """The way to the gateway is another one: the role has to start anew."""
        self._applying = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self.on_change: Callable[[], None] = lambda: None
        """Called after a change of the leases has reached the kernel."""
        self.announcer = Announcer()
        self.losses = Losses(self._translated_to)
        self.announcer.listeners.append(self.losses.heard)
        self.guests = GuestKeeper(settings)
        self.host_id: bytes
        """Who this host is to the server."""
        self._server_found_by: str
        self._uplink: Uplink
        self._applied: Sequence[Lease] = ()
        """The leases that kernel and network follow."""
        self.mapper: Mapper
        """Static bindings."""
        self._leasing: Leasing
        self._plane: HostPlane
        self._pool: PoolKeeper
        self._ephemeral: EphemeralKeeper

    async def start(self) -> str:
        """Lease ports, set up kernel and network; returns one line that says what was obtained. Raises DnatError."""
        self._uplink = await self._privileged.run(links.default_gateway, self._settings.interface)
        lan = await self._privileged.run(links.interface, self._uplink.interface)
        servers, self._server_found_by = await self._privileged.run(self._find_servers, lan)
        self.host_id = self._instance.host_id(lan.mac or "")
        saved, key_path = self._instance.saved_leases, self._instance.key_file
        credentials = load_credentials(self._settings, key_path, self._uplink.address)
        self._leasing = Leasing(
            self.host_id,
            servers,
            saved,
            self._lacking.set,
            self.announcer.heard,
            credentials,
            key_path,
            str(self._uplink.gateway),
        )
        self._ephemeral = EphemeralKeeper(self._settings, self._leasing, self._apply)
        self.mapper = Mapper(self._instance.mappings, self._leasing, lambda: self.external, self._apply)
        await self._leasing.open(self._uplink.address, lan.name, lan.broadcast_of(self._uplink.address))
        adopted = self._leasing.adopt_saved()
        try:
            await self._obtain(adopted)
        except BaseException:
            if not adopted:
                await self._give_back()
            self._leasing.close()
            raise
        self._pool = PoolKeeper(self._settings, self._leasing, self._plane, lambda: self.external, self._apply)
        asyncio.get_running_loop().add_reader(self._plane.fileno(), self._pool.tell)
        self._tasks = [
            asyncio.create_task(task)
            for task in (
                self._follow_leases(),
                keep_repaired(self._repair),
                self._sweep(),
                self._pool.run(),
                self._ephemeral.run(),
            )
        ]
        return self.summary()

    def _find_servers(self, lan: Interface) -> tuple[tuple[IPv4Address, ...], str]:
        """The servers, and what named them: the configuration, else DHCP, else the default route."""
        if self._settings.servers:
            return tuple(map(IPv4Address, self._settings.servers)), "configuration"
        if named := dhcp.port_servers(lan):
            return named, "dhcp"
        return (self._uplink.gateway,), "gateway"

    async def _obtain(self, adopted: bool) -> None:
        """Get leases and programs, which takes its time, at once; then put both to use."""
        loading = asyncio.create_task(asyncio.to_thread(loader.ensure_loaded, "host", self._pins))
        try:
            if not adopted or self._leasing.elsewhere:
                await self._leasing.resume()
            await self._ask_for_missing()
        finally:
            await loading
        self._plane = HostPlane.open(self._pins)
        await self._apply()

    async def stop(self, *, release: bool) -> None:
        """End the tasks; give the leases back when ``release``. The data plane stays: ``down`` removes it."""
        asyncio.get_running_loop().remove_reader(self._plane.fileno())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if release:
            await self._give_back()
        self._leasing.close()

    async def _give_back(self) -> None:
        """Release every lease, if the server is there."""
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._leasing.release([lease.id for lease in self._leasing.leases])
        except (TimeoutError, PeerError):
            log.warning("the server did not confirm the release: the leases end when they expire")

    def summary(self) -> str:
        """What this host has, in one line."""
        parts = [f"{lease.purpose.label} {lease.ports}" for lease in self._leasing.leases]
        found = " (named by DHCP)" if self._server_found_by == "dhcp" else ""
        guests = ", for containers, too" if self.guests.translated else ""
        return f"{self.external} ports {', '.join(sorted(parts))} leased from {self._leasing.server}{found}{guests}"

    async def request(self, want: Want) -> dict[str, Any]:
        """Lease explicit ports for a program; returns when the data plane carries them. Raises PeerError."""
        granted = await self._leasing.request(want)
        await self._apply()
        return {"lease": describe_lease(granted.lease), "fewer": granted.fewer}

    @property
    def leasing(self) -> Leasing:
        """The agent."""
        return self._leasing

    def measure(self, into: Measured) -> None:
        """Figures of this role."""
        into.packets["host"] = self.counters
        into.messages["agent"] = self.pap_counters
        into.leases["host"] = [
            (str(each.address), each.purpose, each.protocol, len(each.ports)) for each in self._leasing.leases
        ]
        into.bindings = len(self._plane.bindings(time.monotonic()))

    def lease_ids(self, ranges: Sequence[PortRange]) -> list[int]:
        """The leases that hold these ports. Raises UsageError where there is none."""
        found = []
        for ports in ranges:
            ids = [
                lease.id for lease in self._leasing.leases if ports.first in lease.ports and ports.last in lease.ports
            ]
            if not ids:
                raise UsageError(f"no lease here holds {ports}; `dnatctl show leases` lists them")
            found += ids
        return found

    async def release(self, lease_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Give explicit leases back. Raises UsageError for a lease that is not there or that the host itself needs."""
        held = {lease.id: lease for lease in self._leasing.leases}
        lease_ids = list(dict.fromkeys(lease_ids))
        for lease_id in lease_ids:
            if lease_id in held and (
                mapped := self.mapper.mappings.within(held[lease_id].ports, held[lease_id].protocol)
            ):
                raise UsageError(
                    f"{mapped[0].protocol.label} port {mapped[0].port} is mapped;"
                    f" first: dnatctl unmap {mapped[0].protocol.label} {mapped[0].local_port}"
                )
            if lease_id not in held:
                raise UsageError("no such lease here; `dnatctl show leases` lists them")
            if held[lease_id].purpose is not Purpose.EXPLICIT:
                raise UsageError(
                    f"{held[lease_id].ports} are the host's own {held[lease_id].purpose.label} ports;"
                    " `dnatctl down` gives them back"
                )
        await self._leasing.release(lease_ids)
        await self._apply()
        return [describe_lease(held[lease_id]) for lease_id in lease_ids]

    @property
    def external(self) -> IPv4Address | None:
        """The external address that this host uses: that of its ephemeral ports."""
        lease = self._ephemeral.current
        return lease.address if lease else None

    @property
    def external_addresses(self) -> tuple[IPv4Address, ...]:
        return tuple(dict.fromkeys(lease.address for lease in self._leasing.leases))

    @property
    def leases(self) -> tuple[Lease, ...]:
        return self._leasing.leases

    @property
    def counters(self) -> dict[str, int]:
        return self._plane.counters()

    @property
    def pap_counters(self) -> dict[str, int]:
        return self._leasing.counters

    def describe_leases(self) -> list[dict[str, Any]]:
        """The leases for ``show``."""
        return [describe_lease(lease) for lease in self._leasing.leases]

    def describe_bindings(self) -> list[dict[str, Any]]:
        """The bindings for ``show``."""
        address = str(self.external)
        return [
            {
                "protocol": binding.protocol.label,
                "local_port": binding.local_port,
                "address": address,
                "port": binding.port,
                "idle": round(binding.idle, 1),
                "static": binding.static,
            }
            for binding in self._plane.bindings(time.monotonic())
        ]

    def _translated_to(self) -> list[int]:
        """Ports of the bindings; none before the data plane is there."""
        if "_plane" not in vars(self):
            return []
        return [binding.port for binding in self._plane.bindings(time.monotonic())]

    async def _ask_for_missing(self) -> None:
        """Lease the ports that the host itself needs and does not have."""
        needs = {
            Purpose.EPHEMERAL: self._settings.ephemeral_ports,
            Purpose.TRANSLATED: self._settings.translated_ports,
        }
        there = {lease.purpose for lease in self._leasing.leases}
        missing = [
            Want(count=count, protocol=Protocol.ANY, purpose=purpose, address=self.external)
            for purpose, count in needs.items()
            if purpose not in there
        ]
        await asyncio.gather(*(self._leasing.request(want) for want in missing))

    async def _follow_leases(self) -> None:
        """Carry every change of the leases into the kernel, and replace what the host lost."""
        while True:
            await self._lacking.wait()
            self._lacking.clear()
            try:
                await self._apply()
                self.on_change()
                await self._ask_for_missing()
                await self.mapper.regain()
                await self._apply()
                self.losses.settle(self._leasing.leases)
            except DnatError as error:
                log.warning("%s", error)
                await asyncio.sleep(pause_after(error))
                self._lacking.set()

    async def _apply(self) -> list[str]:
        """Make data plane and network what the leases say; returns what had to be repaired."""
        async with self._applying:
            leases = self._leasing.leases
            ephemeral = self._ephemeral.current
            mappings = [mapping for mapping in self.mapper.mappings if lease_of(mapping, leases)]
            native = [
                each
                for lease in leases
                if lease.purpose is not Purpose.TRANSLATED
                for each in unmapped(lease, mappings)
            ]
            translated = [(lease.ports, lease.protocol) for lease in leases if lease.purpose is Purpose.TRANSLATED]
            translated += [(PortRange(each.port, each.port), each.protocol) for each in mappings]
            gone = self._gone(leases)
            # First, so that nothing else draws the ports.
            self._plane.set_static({(each.protocol, each.local_port): each.port for each in mappings})
            self._plane.set_ports(native, translated)
            for address, ports in gone.items():
                if closed := await self._privileged.run(sockets.close, address, ports):
                    log.info(
                        "closed %d sockets of programs that spoke from ports of %s no longer ours", closed, address
                    )
            self._applied = leases
            changes: list[str] = []
            if ephemeral:
                mapped = [each.local_port for each in mappings]
                changes = await self._privileged.run(self._ensure, ephemeral, native, mapped)
            # Some may have been lost again meanwhile, or renamed.
            carried = {(lease.address, lease.ports, lease.protocol) for lease in leases}
            now = [each for each in self._leasing.leases if (each.address, each.ports, each.protocol) in carried]
            self.announcer.applied(now, ephemeral.address if ephemeral else None)
            return changes

    def _gone(self, leases: Sequence[Lease]) -> dict[IPv4Address, list[tuple[PortRange, Protocol]]]:
        """What programs spoke from until now and must not any more: local ports, by external address."""
        standing = {(lease.address, lease.ports, lease.protocol) for lease in leases}
        gone: dict[IPv4Address, list[tuple[PortRange, Protocol]]] = {}
        for lease in self._applied:
            if (lease.address, lease.ports, lease.protocol) in standing:
                continue
            native = [(lease.ports, lease.protocol)] if lease.purpose is not Purpose.TRANSLATED else []
            bound = [
                (PortRange(each.local_port, each.local_port), each.protocol)
                for each in self._plane.bindings(time.monotonic())
                if each.port in lease.ports and each.protocol.overlaps(lease.protocol)
            ]
            gone.setdefault(lease.address, []).extend(native + bound)
        return gone

    def _ensure(self, ephemeral: Lease, native: Sequence[Ports], mapped: Sequence[int]) -> list[str]:
        """Attach the programs, then let the host speak with the external address. Runs in a thread."""
        journal, uplink = self._privileged.journal, self._uplink
        self._plane.configure(ephemeral.address, uplink.index, uplink.gateway, self._policy())
        hooks: list[tuple[str, str, Direction]] = [
            ("host_in", uplink.interface, "ingress"),
            ("host_out", uplink.interface, "egress"),
            ("host_loop", "lo", "egress"),
        ]
        changes = []
        for hook in hooks:
            changes += attachments.ensure_attached(journal, self._pins, *hook)
        loader.forget_other_versions(self._pins)
        changes += ensure_host_network(journal, uplink.interface, ephemeral.address, uplink.gateway, ephemeral.ports)
        return changes + self.guests.ensure(journal, uplink.interface, ephemeral.address, native, mapped)

    def _policy(self) -> Policy:
        settings, timers = self._settings, self._settings.timers
        pool = sum(len(lease.ports) for lease in self._leasing.leases if lease.purpose is Purpose.TRANSLATED)
        return Policy(
            filters_by_address=settings.filtering == "address-dependent",
            inbound_refreshes=settings.inbound_refresh,
            answers_refusals=settings.exhausted == "icmp",
            low_water=low_water(pool),
            udp=timers.udp,
            tcp_established=timers.tcp_established,
            tcp_transitory=timers.tcp_transitory,
            icmp=timers.icmp,
        )

    async def _repair(self) -> list[str]:
        """Undo what others undid, unless the way to the gateway has changed so much that the role starts anew."""
        now = await self._privileged.run(links.moved, self._uplink)
        if now is None:
            return await self._apply()
        if not self.moved.is_set():
            log.warning("the way to the gateway is another one: %s, it was %s", now, self._uplink)
            if now.index == self._uplink.index and now.interface != self._uplink.interface:
                journal = self._privileged.journal
                await self._privileged.run(journal.rename_interface, self._uplink.interface, now.interface)
            self.moved.set()
        return []

    async def _sweep(self) -> None:
        """Remove bindings whose time has passed."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._plane.sweep(time.monotonic())
