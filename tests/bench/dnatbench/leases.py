"""How many leases a server grants in a second, each of them durable: the protocol core and the store, batched as the
daemon does. Beside it the store alone, writing the same changes: what durability costs."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from dnat.leases.pool import Pool
from dnat.leases.records import Change
from dnat.leases.table import LeaseTable
from dnat.pap.codec import encode
from dnat.pap.messages import Message, MessageType, Want
from dnat.pap.server import Policy, Server
from dnat.store import SqliteStore
from dnat.types import PortRange, Protocol, Purpose
from dnatbench.measure import Summary, interleave, ratio

SERVER, STORE = "server with its store", "the store alone"
_BATCH = 32
"""Questions that gather while a commit is under way."""
_PORTS = 64
_WANT = Want(count=_PORTS, protocol=Protocol.ANY, purpose=Purpose.EPHEMERAL)


def run(rounds: int, hosts: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Leases a second of the server and of the store alone."""
    say("leases")
    questions = [_question(number) for number in range(hosts)]
    batches: list[list[Change]] = []
    variants = {
        SERVER: lambda: asyncio.run(_serve(questions, batches)),
        STORE: lambda: asyncio.run(_store(batches, hosts)),
    }
    variants[SERVER]()
    samples = interleave(variants, rounds)
    return [
        {"what": name, "per_second": asdict(Summary.of(values)), "of_store": asdict(ratio(values, samples[STORE]))}
        for name, values in samples.items()
    ]


def _question(number: int) -> tuple[bytes, tuple[IPv4Address, int]]:
    host_id = (number + 1).to_bytes(16)
    message = Message(MessageType.REQUEST, transaction=number + 1, host_id=host_id, want=_WANT)
    return encode(message), (IPv4Address("10.0.0.1") + number, 4000)


async def _serve(questions: list[tuple[bytes, tuple[IPv4Address, int]]], batches: list[list[Change]]) -> float:
    batches.clear()
    externals = tuple(IPv4Address("198.51.100.1") + number for number in range(len(questions) * _PORTS // 45_000 + 2))
    pool = Pool(addresses=externals, ports=(PortRange(10_000, 59_999),), specific=(PortRange(1024, 59_999),))
    with tempfile.TemporaryDirectory(prefix="dnat-bench-") as directory:
        store = SqliteStore(Path(directory) / "leases.sqlite")
        await store.open(time.time())
        policy = Policy(networks=(IPv4Network("10.0.0.0/8"),))
        server = Server(LeaseTable(pool, hold=120.0), lambda: secrets.randbits(64), policy, time.time())
        granted = 0
        started = time.perf_counter()
        for start in range(0, len(questions), _BATCH):
            for datagram, source in questions[start : start + _BATCH]:
                server.receive(datagram, source, time.time())
            steps = server.steps()
            changes = [change for step in steps for change in step.changes]
            await store.transact(changes)
            for step in steps:
                server.committed(step, time.time())
            batches.append(changes)
            granted += len(changes)
        spent = time.perf_counter() - started
        await store.close()
    if granted < len(questions):
        raise RuntimeError(f"{granted} of {len(questions)} leases were granted")
    return len(questions) / spent


async def _store(batches: list[list[Change]], leases: int) -> float:
    with tempfile.TemporaryDirectory(prefix="dnat-bench-") as directory:
        store = SqliteStore(Path(directory) / "leases.sqlite")
        await store.open(time.time())
        started = time.perf_counter()
        for changes in batches:
            await store.transact(changes)
        spent = time.perf_counter() - started
        await store.close()
    return leases / spent
