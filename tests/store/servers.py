"""Port servers and hosts on the loopback, each with an address of its own; servers share a cluster."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from dnat.config import ServerSettings
from dnat.daemon.agreement import X25519Agreement
from dnat.daemon.clock import SteadyClock, boottime
from dnat.daemon.leasing import Leasing, RefusedError
from dnat.daemon.server import LanAddress, ServerRole, pool
from dnat.pap.credentials import Credentials
from dnat.pap.messages import Want
from dnat.store import KeyStore, PublishedPool, SqliteKeyStore, SqliteStore, Store
from dnat.store.etcd.client import Cluster
from dnat.store.etcd.keys import EtcdKeyStore
from dnat.store.etcd.store import EtcdStore
from dnat.types import Lease, PortRange, Protocol, Purpose

LOOPBACK = IPv4Network("127.0.0.0/8")
# Of this test run alone: others may run on the same machine.
_NETWORK = int(IPv4Address("127.32.0.0")) + os.getpid() % 4096 * 256


def address(number: int) -> IPv4Address:
    """1 to 254."""
    return IPv4Address(_NETWORK + number)


@contextlib.asynccontextmanager
async def serving(cluster: Cluster, number: int, **settings: Any) -> AsyncIterator[ServerRole]:
    """A server at `address(number)`."""
    leasable = pool(_settings(**settings))
    store = EtcdStore(cluster, PublishedPool(leasable.addresses, leasable.ranges))
    role = _role(store, EtcdKeyStore(cluster), number, **settings)
    store.on_offence(role.offence)
    async with _running(role):
        yield role


@contextlib.asynccontextmanager
async def serving_from(directory: Path, number: int) -> AsyncIterator[tuple[ServerRole, SqliteStore]]:
    """A server at `address(number)` with stores of its own in a directory."""
    store = SqliteStore(directory / "leases.sqlite")
    role = _role(store, SqliteKeyStore(directory / "keys.sqlite"), number)
    async with _running(role):
        yield role, store


def _settings(**settings: Any) -> ServerSettings:
    return ServerSettings(
        external_addresses=["198.51.100.1"], requests_per_second=10000, new_leases_per_second=100000, **settings
    )


def _role(store: Store, key_store: KeyStore, number: int, **settings: Any) -> ServerRole:
    return ServerRole(
        _settings(**settings), store, key_store, LanAddress("lo", address(number), LOOPBACK), SteadyClock()
    )


@contextlib.asynccontextmanager
async def _running(role: ServerRole) -> AsyncIterator[None]:
    await role.load()
    await role.listen()
    try:
        yield
    finally:
        await role.stop()


class Host:
    """A host at `address(number)` without a kernel."""

    def __init__(self, number: int, servers: tuple[int, ...], directory: Path, *, key: bool = False) -> None:
        self.address = address(number)
        offset = time.time() - boottime()
        credentials = Credentials(self.address, offset, None, X25519Agreement if key else None)
        name = directory / f"host{number}"
        self.leasing = Leasing(
            secrets.token_bytes(16),
            tuple(map(address, servers)),
            name.with_suffix(".leases"),
            lambda: None,
            lambda _: None,
            credentials,
            name.with_suffix(".key"),
        )

    async def __aenter__(self) -> Host:
        await self.leasing.open(self.address, "lo", None)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leasing.close()

    async def want(self, count: int, first: int | None = None) -> Lease | None:
        """Ask for ports; None when they are refused."""
        want = Want(count, Protocol.ANY, Purpose.EXPLICIT, exact=True, first=first)
        try:
            return (await self.leasing.request(want)).lease
        except RefusedError:
            return None

    async def release(self, lease: Lease) -> None:
        await self.leasing.release([lease.id])

    @property
    def ports(self) -> list[PortRange]:
        return sorted(lease.ports for lease in self.leasing.leases)
