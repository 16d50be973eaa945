"""Roles whose store is an etcd cluster: servers that share it, routers that follow it from machines of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from dnat.config import Config
from dnat.daemon.clock import SteadyClock
from dnat.daemon.privileged import Privileged
from dnat.daemon.router import RouterRole
from dnat.daemon.server import LEARN_SECONDS, LanAddress, ServerRole
from dnat.errors import PlatformError
from dnat.instance import Instance
from dnat.leases.pool import Pool
from dnat.store import PublishedPool
from dnat.store.etcd.client import Cluster
from dnat.store.etcd.feed import RouterFeed
from dnat.store.etcd.keys import EtcdKeyStore
from dnat.store.etcd.store import EtcdStore
from dnat.system import links


def server(
    config: Config, pool: Pool, lan: LanAddress, clock: SteadyClock, first_start: Callable[[float], float]
) -> ServerRole:
    """A server that hears of offences from routers elsewhere. Raises StoreError."""
    settings, where = config.server, cluster(config)
    published = PublishedPool(pool.addresses, pool.ranges)
    store = EtcdStore(where, published, settings.retention_days * 86400.0)
    role = ServerRole(settings, store, EtcdKeyStore(where), lan, clock, first_start)
    store.on_offence(role.offence)
    return role


class ClusteredRouter:
    """A router role with what it follows."""

    def __init__(self, role: RouterRole, feed: RouterFeed) -> None:
        self.role = role
        self._feed = feed

    @classmethod
    async def start(cls, instance: Instance, config: Config, privileged: Privileged) -> Self:
        """Fill the maps from the store, or from the file that stands in for it. Raises DnatError."""
        name = await privileged.run(_lan_address, config.router.lan)
        feed = RouterFeed(cluster(config), name, instance.router_leases)
        pool, records = await feed.open()
        role = RouterRole(instance, config.router, privileged, pool.addresses, pool.ports, feed.report)
        await role.start(records, keep=feed.from_file or feed.lost)
        if feed.lost:
            role.settle(LEARN_SECONDS)
        feed.start(role.follow, role.refill)
        return cls(role, feed)

    async def stop(self, *, leave: bool) -> None:
        """``leave``: the data plane is taken off, too."""
        await self._feed.stop(leave=leave)

    def describe(self) -> dict[str, Any]:
        """The part ``router.store`` of ``show -o json``."""
        return self._feed.describe()


def cluster(config: Config) -> Cluster:
    """The cluster of a configuration."""
    store = config.store
    ca, certificate, key = (Path(path) if path else None for path in (store.ca, store.certificate, store.key))
    return Cluster(tuple(store.endpoints), store.prefix, ca, certificate, key)


def _lan_address(interface: str) -> str:
    addresses = links.interface(interface).addresses
    if not addresses:
        raise PlatformError(f"{interface} has no IPv4 address yet: give it its LAN address first")
    return str(addresses[0].ip)
