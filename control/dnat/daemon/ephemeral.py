"""Keeps the block of ports that the kernel picks from large enough, and no larger.

The kernel knows one range to pick from (``ip_local_port_range``), so a block cannot be added to: a larger one is leased
and picked from, and the former is given back when its last socket has gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from dnat.config import HostSettings
from dnat.daemon.leasing import ASK_AGAIN_SECONDS, Leasing, pause_after
from dnat.errors import PeerError
from dnat.pap.messages import Want
from dnat.system import local_sockets
from dnat.system.local_sockets import Usage
from dnat.types import Lease, PortRange, Protocol, Purpose

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""How often; a look that costs much is followed by a longer pause."""
SHARE_OF_CPU = 50
"""A pause is at least so many times as long as the look before it kept a processor busy."""
SPARE_WHEN_FULL = 4
"""A block grows when less than one in so many of its ports is free."""
SPARE = 8
"""A block shrinks when it is so many times as large as what is used of it."""


class EphemeralKeeper:
    """One host's block; ``apply`` carries the leases into the kernel."""

    def __init__(self, settings: HostSettings, leasing: Leasing, apply: Callable[[], Awaitable[object]]) -> None:
        self._least = settings.ephemeral_ports
        self._most = max(settings.ephemeral_ports_max, self._least)
        self._rest_seconds = settings.give_back_after
        self._leasing = leasing
        self._apply = apply
        self._chosen = 0
        self._ask_at = 0.0
        self._roomy_since: float | None = None
        self._unused: set[int] = set()

    @property
    def current(self) -> Lease | None:
        """The lease whose ports the kernel picks: the one chosen last, else the largest."""
        return max(self._leases, key=lambda lease: (lease.id == self._chosen, len(lease.ports)), default=None)

    @property
    def _leases(self) -> list[Lease]:
        return [lease for lease in self._leasing.leases if lease.purpose is Purpose.EPHEMERAL]

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            cost = 0.0
            try:
                cost = await self._look(time.monotonic())
            except PeerError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("could not look after the ephemeral ports")
            await asyncio.sleep(max(LOOK_SECONDS, SHARE_OF_CPU * cost))

    async def _look(self, now: float) -> float:
        """Do what the sockets of now ask for; returns the seconds of CPU that it took to see them."""
        current = self.current
        if current is None:
            return 0.0
        size, former = len(current.ports), [lease for lease in self._leases if lease is not current]
        if not former and size <= self._least and local_sockets.count() <= _high_water(size):
            return 0.0
        usage, cost = await asyncio.to_thread(_measured_usage, [lease.ports for lease in self._leases])
        await self._give_back(former, usage)
        taken = usage[current.ports].taken
        if taken > _high_water(size):
            await self._move(current, max(2 * size, _room_for(taken)), now)
        else:
            await self._shrink(current, sum(each.taken for each in usage.values()), now)
        return cost

    async def _give_back(self, former: list[Lease], usage: dict[PortRange, Usage]) -> None:
        """Release blocks from which no socket speaks any more. Twice none: one may have been between pick and use."""
        unused = {lease.id for lease in former if not usage[lease.ports].sockets}
        if gone := unused & self._unused:
            log.info("gives back %s", ", ".join(str(lease.ports) for lease in former if lease.id in gone))
            await self._leasing.release(sorted(gone))
            await self._apply()
        self._unused = unused

    async def _shrink(self, current: Lease, taken: int, now: float) -> None:
        """Take a smaller block when this one has been much too large for a while."""
        size = len(current.ports)
        if size <= self._least or taken * SPARE > size:
            self._roomy_since = None
        elif self._roomy_since is None:
            self._roomy_since = now
        elif now - self._roomy_since >= self._rest_seconds:
            self._roomy_since = None
            await self._move(current, max(self._least, _room_for(taken)), now)

    async def _move(self, current: Lease, size: int, now: float) -> None:
        """Let the kernel pick from another block of at most so many ports."""
        size, before = min(size, self._most), len(current.ports)
        if size == before or now < self._ask_at:
            return
        want = Want(count=size, protocol=Protocol.ANY, purpose=Purpose.EPHEMERAL, address=current.address)
        try:
            granted = (await self._leasing.request(want)).lease
        except PeerError as error:
            self._ask_at = now + pause_after(error)
            log.warning("no other block of ephemeral ports: %s", error)
            return
        if len(granted.ports) <= before < size:
            log.warning("the server has no larger block of ephemeral ports than %s", current.ports)
            self._ask_at = now + ASK_AGAIN_SECONDS
            await self._leasing.release([granted.id])
            return
        log.info("the kernel picks from %s instead of %s", granted.ports, current.ports)
        self._chosen = granted.id
        await self._apply()


def _measured_usage(ranges: list[PortRange]) -> tuple[dict[PortRange, Usage], float]:
    """What is in use of each range, and the seconds of CPU that it took to find out."""
    began = time.thread_time()
    usage = local_sockets.usage(ranges)
    return usage, time.thread_time() - began


def _high_water(size: int) -> int:
    """Ports in use beyond which a block of so many is too small."""
    return size - size // SPARE_WHEN_FULL


def _room_for(taken: int) -> int:
    """A block of which so many ports are less than half: a power of two."""
    return 1 << (2 * taken).bit_length()
