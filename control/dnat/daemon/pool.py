"""Keeps the pool of ports to translate to large enough, and no larger.

The programs tell when few ports are left; then another block is leased, as large as what there is, so that even a
large pool takes few leases. Blocks that nobody has used for a while are given back, the youngest first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address

from dnat.config import HostSettings
from dnat.daemon.leasing import Leasing, pause_after
from dnat.dataplane.host import HostPlane
from dnat.errors import PeerError
from dnat.pap.messages import Want
from dnat.types import Lease, Protocol, Purpose

log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0


BURST = 16
"""New bindings at once that a pool has ports for while it grows, if it has twice as many."""


def low_water(ports: int) -> int:
    """Free ports at which a pool of so many ports has to grow."""
    return max(ports // 4, min(ports // 2, BURST))


class PoolKeeper:
    """One host's pool; ``apply`` carries the leases into the kernel."""

    def __init__(
        self,
        settings: HostSettings,
        leasing: Leasing,
        plane: HostPlane,
        address: Callable[[], IPv4Address | None],
        apply: Callable[[], Awaitable[object]],
    ) -> None:
        self._settings = settings
        self._leasing = leasing
        self._plane = plane
        self._address = address
        self._apply = apply
        self._told = asyncio.Event()
        self._ask_at = 0.0
        self._idle_since: dict[int, float] = {}

    def tell(self) -> None:
        """The programs have something to say: callback of the event loop."""
        self._plane.drain_events()
        self._told.set()

    async def run(self) -> None:
        """Grow when told, and look for surplus from time to time; until cancelled."""
        while True:
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._told.wait()
            except TimeoutError:
                pass
            self._told.clear()
            try:
                await self._grow()
                await self._give_back()
            except PeerError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("could not look after the pool")

    @property
    def _leases(self) -> list[Lease]:
        return [lease for lease in self._leasing.leases if lease.purpose is Purpose.TRANSLATED]

    def _free(self) -> int:
        """Free ports of the class that has the fewest."""
        return min(self._plane.free_ports().values())

    async def _grow(self) -> None:
        """Lease until enough ports are free, or until no more can be had; then programs are refused for good."""
        while (held := _count(self._leases)) and self._free() <= low_water(held):
            room = self._settings.translated_ports_max - held
            if room <= 0:
                self._plane.set_exhausted(True)
                return
            if time.monotonic() < self._ask_at:
                return
            want = Want(
                count=min(held, room),
                protocol=Protocol.ANY,
                purpose=Purpose.TRANSLATED,
                address=self._address(),
            )
            try:
                granted = await self._leasing.request(want)
            except PeerError as error:
                log.warning("no more ports to translate to: %s", error)
                self._ask_at = time.monotonic() + pause_after(error)
                self._plane.set_exhausted(True)
                return
            log.info("the pool grows by %s", granted.lease.ports)
            await self._apply()
        self._plane.set_exhausted(False)

    async def _give_back(self) -> None:
        """Release the youngest block that has been idle for long enough, if the rest has ports to spare."""
        leases = self._leases
        now = time.monotonic()
        bound = {binding.port for binding in self._plane.bindings(now)}
        idle = [lease for lease in leases if not any(port in lease.ports for port in bound)]
        self._idle_since = {lease.id: self._idle_since.get(lease.id, now) for lease in idle}
        for lease in reversed(idle):
            rest = _count(leases) - len(lease.ports)
            spare = self._free() - len(lease.ports) > rest // 2
            rested = now - self._idle_since[lease.id] >= self._settings.give_back_after
            # Nothing may come between the two calls: whoever applies the leases would put the block back.
            if rest >= self._settings.translated_ports and spare and rested and self._plane.retire(lease.ports):
                log.info("the pool gives back %s", lease.ports)
                await self._leasing.release([lease.id])
                await self._apply()
                self._told.set()  # there may be more
                return


def _count(leases: Sequence[Lease]) -> int:
    return sum(len(lease.ports) for lease in leases)
