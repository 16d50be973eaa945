"""Hears from the kernel when the network of this machine changes, so that what others undo is repaired at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

from dnat.errors import DnatError

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""How long nothing may be heard until the network is looked at all the same: sysctls change in silence."""
SETTLE_SECONDS = 0.2
"""A network manager changes several things one after the other."""
REST_SECONDS = 1.0
"""Between two looks at least, however much changes: somebody may undo at once whatever is repaired."""
LARGEST_SHARE = 1 / 20
"""Of the time that may be spent with looking: a router may have many routes that change all the time."""

# linux/netlink.h, linux/rtnetlink.h, linux/netfilter/nfnetlink.h
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_LINK, _TC, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_NETCONF = 1, 4, 5, 7, 24
_NFTABLES = 7
_GROUPS = {_NETLINK_ROUTE: (_LINK, _TC, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_NETCONF), _NETLINK_NETFILTER: (_NFTABLES,)}
_OCTETS = 65536


class NetworkChanges:
    """Interfaces, addresses, routes, filters, forwarding and nftables of this network namespace."""

    def __init__(self) -> None:
        self._heard = asyncio.Event()
        self._looked = asyncio.get_running_loop().time()
        self._sockets: list[socket.socket] = []
        for family, groups in _GROUPS.items():
            # Without nftables in the kernel there is nothing to hear of them.
            with contextlib.suppress(OSError):
                self._sockets.append(_listen(family, groups))
        for each in self._sockets:
            asyncio.get_running_loop().add_reader(each, self._readable, each)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._sockets:
            asyncio.get_running_loop().remove_reader(each)
            each.close()

    async def wait(self) -> None:
        """Return when something has changed since it returned last, or when it is time to look all the same."""
        loop = asyncio.get_running_loop()
        spent = loop.time() - self._looked
        rest = max(REST_SECONDS, min(LOOK_SECONDS, spent / LARGEST_SHARE))
        earliest = loop.time() + rest
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._heard.wait()
                await asyncio.sleep(max(SETTLE_SECONDS, earliest - loop.time()))
        self._heard.clear()
        self._looked = loop.time()

    def _readable(self, ready: socket.socket) -> None:
        # What it says does not matter; that some of it was lost (ENOBUFS) says as much.
        with contextlib.suppress(OSError):
            while ready.recv(_OCTETS):
                pass
        self._heard.set()


async def keep_repaired(repair: Callable[[], Awaitable[Sequence[str]]]) -> None:
    """Compare and repair after every change, for ever; ``repair`` returns what it changed, in words."""
    said = ""
    with NetworkChanges() as changes:
        while True:
            await changes.wait()
            try:
                for repaired in await repair():
                    log.warning("repaired: %s", repaired)
                said = ""
            except DnatError as error:
                if str(error) != said:
                    log.warning("%s", error)
                said = str(error)
            except Exception:
                log.exception("could not compare the network with what it should be")


def _listen(family: int, groups: tuple[int, ...]) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, family)
    try:
        opened.bind((0, 0))
        for group in groups:
            opened.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError:
        opened.close()
        raise
    return opened
