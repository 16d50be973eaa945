"""The shared address that is whatever address the WAN interface has: ``external_addresses = ["wan"]``."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from dnat.config import WAN_ADDRESS, Config
from dnat.daemon.privileged import Privileged
from dnat.errors import PlatformError
from dnat.system import links

log = logging.getLogger(__name__)

WATCH_SECONDS = 2.0


def follows(config: Config) -> bool:
    """Whether a shared address is the WAN's."""
    return WAN_ADDRESS in config.server.external_addresses and config.router.wan is not None


def resolve(config: Config) -> Config:
    """The configuration with the address that the WAN has now. Raises PlatformError when it has none."""
    if not follows(config):
        return config
    name = config.router.wan or ""
    address = _address(name)
    if address is None:
        raise PlatformError(f"{name} has no IPv4 address yet, and server.external_addresses names it: connect it first")
    listed = [address if text == WAN_ADDRESS else text for text in config.server.external_addresses]
    server = msgspec.structs.replace(config.server, external_addresses=list(dict.fromkeys(listed)))
    return msgspec.structs.replace(config, server=server)


async def changed(config: Config, privileged: Privileged) -> None:
    """Return when the WAN has another address than a resolved configuration says. None at all is not another one: the
    link may come back as it was.
    """
    name = config.router.wan or ""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        try:
            address = await privileged.run(_address, name)
        except PlatformError:
            # PPP's interface goes with its session.
            continue
        if address is not None and address not in config.server.external_addresses:
            log.warning("%s has the address %s now: hosts get ports of that one", name, address)
            return


def _address(name: str) -> str | None:
    addresses = links.interface(name).addresses
    return str(addresses[0].ip) if addresses else None
