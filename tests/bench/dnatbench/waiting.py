"""How long a grant waits until it is durable and every router has its owner in its maps: no host speaks before.

Beside it the same without routers, and with that of the server's own machine alone. Other routers are processes of
their own, which follow the store as machines of their own do; etcd has three members on this machine.

``python -m dnatbench.waiting ENDPOINTS PREFIX NAME`` is such a router, until its standard input ends.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from dnat.dataplane.router import RouterPlane
from dnat.leases.records import Change, LeaseRecord, PutLease
from dnat.store import PublishedPool, SqliteStore, Store
from dnat.store.etcd.client import Cluster
from dnat.store.etcd.feed import RouterFeed
from dnat.store.etcd.store import EtcdStore
from dnat.types import Owner
from dnatbench.measure import Summary
from dnatbench.restoring import POOL, etcd, kernel_maps, leases_of

PERCENTILES = (50, 90, 99)
_SECONDS = 30.0


def run(rounds: int, grants: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Percentiles of milliseconds, for grants one after the other."""
    say("waiting for routers")
    records = leases_of(64)[:grants]
    samples: dict[str, list[list[float]]] = {}
    # One event loop for all: grpc has one in a process.
    with etcd() as members, tempfile.TemporaryDirectory(prefix="dnat-bench-") as name, asyncio.Runner() as runner:
        endpoints = tuple(member.endpoint for member in members)
        for number in range(rounds):
            path = Path(name) / str(number)
            with kernel_maps() as plane:
                for which, routers in (("SQLite, no router", None), ("SQLite, the server's machine", plane)):
                    store = SqliteStore(path / f"{routers is None}.sqlite")
                    if routers is not None:
                        store.watch(lambda changes: carry_in(plane, changes))
                    samples.setdefault(which, []).append(runner.run(_grant(store, records, ())))
            for count, which in ((0, "etcd, no router"), (1, "etcd, one router"), (2, "etcd, two routers")):
                cluster = Cluster(endpoints, f"/waiting-{number}-{count}/")
                runner.run(_grant(EtcdStore(cluster, POOL), (), ()))
                with ExitStack() as running:
                    names = tuple(f"10.66.0.{each + 1}" for each in range(count))
                    for each in names:
                        running.enter_context(_router(cluster, each))
                    times = runner.run(_grant(EtcdStore(cluster, POOL), records, names))
                samples.setdefault(which, []).append(times)
    found = []
    for which, lists in samples.items():
        of = {str(part): Summary.of([each[len(each) * part // 100] for each in lists]) for part in PERCENTILES}
        found.append({"what": which, "ms": {part: asdict(summary) for part, summary in of.items()}})
    return found


async def _grant(store: Store, records: Sequence[LeaseRecord], routers: tuple[str, ...]) -> list[float]:
    """Milliseconds, sorted."""
    await store.open(time.time())
    if isinstance(store, EtcdStore):
        deadline = time.monotonic() + _SECONDS
        while store.routers != routers:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server knows of {store.routers} instead of {routers}")
            await asyncio.sleep(0.01)
    times = []
    for record in records:
        started = time.perf_counter()
        await store.transact([PutLease(record)])
        times.append((time.perf_counter() - started) * 1e3)
    await store.close()
    return sorted(times)


@contextmanager
def _router(cluster: Cluster, name: str) -> Iterator[None]:
    command = [sys.executable, "-m", "dnatbench.waiting", ",".join(cluster.endpoints), cluster.prefix, name]
    router = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert router.stdin is not None and router.stdout is not None
    try:
        if not router.stdout.readline():
            raise RuntimeError("a router did not start")
        yield
    finally:
        router.stdin.close()
        router.wait(_SECONDS)
        router.stdout.close()


def carry_in(plane: RouterPlane, changes: Sequence[Change]) -> None:
    """As the router role does."""
    plane.apply(add=[_owner(change.record) for change in changes if isinstance(change, PutLease)])


def _owner(record: LeaseRecord) -> Owner:
    return Owner(record.address, record.ports, record.protocol, record.host)


async def follow(cluster: Cluster, name: str) -> None:
    """Be a router until standard input ends."""
    with kernel_maps() as plane, tempfile.TemporaryDirectory(prefix="dnat-bench-") as directory:
        feed = RouterFeed(cluster, name, Path(directory) / "leases.json")
        _, records = await feed.open()
        plane.set_owners(map(_owner, records))

        def refill(pool: PublishedPool, records: Sequence[LeaseRecord], lost: bool, done: Callable[[], None]) -> None:
            plane.set_owners(map(_owner, records))
            done()

        feed.start(lambda changes: carry_in(plane, changes), refill)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await feed.stop(leave=True)


if __name__ == "__main__":
    asyncio.run(follow(Cluster(tuple(sys.argv[1].split(",")), sys.argv[2]), str(IPv4Address(sys.argv[3]))))
