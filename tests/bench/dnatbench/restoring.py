"""How long a router takes from the store to its maps when it starts: 65,536 leased ports, which nobody owned before."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from dnat.dataplane import loader
from dnat.dataplane.router import RouterPlane
from dnat.lab.etcd import Member, command, is_healthy, launch, on_the_loopback
from dnat.leases.pool import Pool
from dnat.leases.records import LeaseRecord, PutLease
from dnat.leases.table import LeaseTable
from dnat.store import PublishedPool, SqliteStore
from dnat.store.base import many_records
from dnat.store.etcd.client import Cluster
from dnat.store.etcd.feed import RouterFeed
from dnat.store.etcd.store import EtcdStore
from dnat.types import Owner, PortRange, Protocol, Purpose
from dnatbench.measure import Summary, interleave

PORTS = 65_536
GOAL = 1.0
"""Seconds."""
EXTERNALS = (IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2"))
POOL = PublishedPool(EXTERNALS, (PortRange(1024, 59_999),))
HOSTS = 1_024
SIZES = (64, 1)
"""Ports of a lease: of a host as it comes, and the worst case."""
_BATCH = 1_000
_ETCD_SECONDS = 60.0

Read = Callable[[], Sequence[LeaseRecord]]


def run(rounds: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Seconds to read the leases, and to have all owners in the maps."""
    say("restoring a router")
    found = []
    with (
        kernel_maps() as plane,
        etcd() as members,
        tempfile.TemporaryDirectory(prefix="dnat-bench-") as directory,
        asyncio.Runner() as runner,
    ):
        for size in SIZES:
            records = leases_of(size)
            place = Path(directory) / str(size)
            readers = runner.run(_fill(records, place, members, f"/bench-{size}/", runner))
            parts: dict[str, list[float]] = {name: [] for name in readers}

            def restore(name: str, readers: dict[str, Read] = readers, parts: dict[str, list[float]] = parts) -> float:
                plane.set_owners(())
                started = time.perf_counter()
                # As the daemon does it.
                with many_records():
                    leases = readers[name]()
                    parts[name].append(time.perf_counter() - started)
                    owners = {each.id: Owner(each.address, each.ports, each.protocol, each.host) for each in leases}
                    plane.set_owners(owners.values())
                    spent = time.perf_counter() - started
                held = sum(len(owner.ports) for owner in plane.owners())
                if held != PORTS:
                    raise RuntimeError(f"the maps have owners of {held} ports instead of {PORTS}")
                return spent

            variants = {name: lambda name=name: restore(name) for name in readers}  # type: ignore[misc]
            for name, seconds in interleave(variants, rounds).items():
                found.append(
                    {
                        "what": f"{name}, {len(records):,} leases",
                        "leases": len(records),
                        "seconds": asdict(Summary.of(seconds)),
                        "goal": GOAL,
                        "reading": asdict(Summary.of(parts[name])),
                    }
                )
    return found


def leases_of(size: int) -> list[LeaseRecord]:
    """All ports of both addresses from 10,000 on, in leases of ``size``."""
    records = []
    for number in range(PORTS // size):
        external, place = divmod(number * size, PORTS // 2)
        first = 10_000 + place
        host = number % HOSTS
        records.append(
            LeaseRecord(
                id=number + 1,
                address=EXTERNALS[external],
                ports=PortRange(first, first + size - 1),
                protocol=Protocol.ANY,
                purpose=Purpose.EPHEMERAL,
                host_id=host.to_bytes(16),
                host=IPv4Address("10.66.8.1") + host,
                transaction=number + 1,
                granted_at=0.0,
                expires_at=1e10,
            )
        )
    return records


async def _fill(
    records: list[LeaseRecord], directory: Path, members: Sequence[Member], prefix: str, runner: asyncio.Runner
) -> dict[str, Read]:
    """Write the leases to both stores; returns how a router reads them when it starts."""
    cluster = Cluster(tuple(member.endpoint for member in members), prefix)
    path = directory / "leases.sqlite"
    for store in (SqliteStore(path), EtcdStore(cluster, POOL)):
        await store.open(time.time())
        for start in range(0, len(records), _BATCH):
            await store.transact([PutLease(record) for record in records[start : start + _BATCH]])
        await store.close()

    async def from_sqlite() -> Sequence[LeaseRecord]:
        store = SqliteStore(path)
        state = await store.open(time.time())
        await store.close()
        # The server beside the router has its lease table before the router has its owners.
        LeaseTable(Pool(POOL.addresses, POOL.ports)).load(state.records, state.holds)
        return state.records

    async def from_etcd() -> Sequence[LeaseRecord]:
        feed = RouterFeed(cluster, "10.66.0.1", directory / "router-leases.json")
        _, leases = await feed.open()
        await feed.stop(leave=True)
        return leases

    return {"SQLite": lambda: runner.run(from_sqlite()), "etcd": lambda: runner.run(from_etcd())}


@contextmanager
def kernel_maps() -> Iterator[RouterPlane]:
    """Maps of a router, without interfaces."""
    pins = loader.BPFFS / f"bench-{os.getpid()}"
    loader.ensure_loaded("router", pins)
    plane = RouterPlane.open(pins)
    try:
        own, lan = {IPv4Address("10.66.0.1"): False}, IPv4Network("10.66.0.0/16")
        plane.set_network(1, 2, dict.fromkeys(EXTERNALS, False), lan=lan, local=own)
        yield plane
    finally:
        plane.close()
        loader.unload(pins)


@contextmanager
def etcd() -> Iterator[list[Member]]:
    """Three members on the loopback."""
    members = on_the_loopback()
    running = []
    with tempfile.TemporaryDirectory(prefix="dnat-bench-") as directory:
        try:
            for member in members:
                argv = command(member, members, Path(directory) / member.name, Path(directory).name)
                running.append(launch(argv, Path(directory) / f"{member.name}.log"))
            deadline = time.monotonic() + _ETCD_SECONDS
            while not all(map(is_healthy, members)):
                if time.monotonic() > deadline:
                    raise RuntimeError("etcd does not serve")
                time.sleep(0.1)
            yield members
        finally:
            for process in running:
                process.kill()
                process.wait()
