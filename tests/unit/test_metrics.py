"""The metrics, read back with Prometheus' own parser."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time
import urllib.request
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dnat.daemon import metrics
from dnat.daemon.metrics import Measured, MetricsServer, exposition
from dnat.errors import PlatformError
from dnat.types import Protocol, Purpose

MEASURED = Measured(
    packets={"router": {"drop_no_owner": 3}},
    messages={"server": {"want-success": 2, "bad-tag": 0}},
    leases={
        "server": [
            ("198.51.100.1", Purpose.EPHEMERAL, Protocol.ANY, 64),
            ("198.51.100.1", Purpose.EPHEMERAL, Protocol.ANY, 32),
            ("198.51.100.1", Purpose.EXPLICIT, Protocol.UDP, 1),
        ]
    },
    pool={"198.51.100.1": 50000},
    holds=4,
    keys={"active": 1},
    epoch_start=1.0,
    owned={"198.51.100.1": 97},
    sip_running=True,
    store_reachable=False,
    sip_restarts=2,
    connections=5,
    program_leases=6,
)


def read(text: str) -> dict[tuple[str, ...], float]:
    """Samples by name and values of their labels, in the order of the labels' names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_figure_is_there() -> None:
    samples = read(exposition(MEASURED, ["server", "router"]))
    assert samples["dnat_packets_total", "drop_no_owner", "router"] == 3
    assert samples["dnat_pap_messages_total", "want-success", "server"] == 2
    assert samples["dnat_leases", "198.51.100.1", "any", "ephemeral", "server"] == 2
    assert samples["dnat_leased_ports", "198.51.100.1", "any", "ephemeral", "server"] == 96
    assert samples["dnat_leased_ports", "198.51.100.1", "udp", "explicit", "server"] == 1
    assert samples["dnat_pool_ports", "198.51.100.1"] == 50000
    assert samples["dnat_keys", "active"] == 1
    assert samples["dnat_holds",] == 4
    assert samples["dnat_owned_ports", "198.51.100.1"] == 97
    assert samples["dnat_store_reachable",] == 0
    assert (samples["dnat_sip_running",], samples["dnat_sip_restarts_total",]) == (1, 2)
    assert (samples["dnat_api_connections",], samples["dnat_program_leases",]) == (5, 6)
    assert not any(name[0] == "dnat_bindings" for name in samples), "a server translates nothing"


def test_every_figure_is_documented() -> None:
    """By the name under which Prometheus stores it."""
    everything = replace(MEASURED, bindings=1)
    table = (Path(__file__).parents[2] / "docs/operation.md").read_text()
    names = {name[0] for name in read(exposition(everything, ["server"]))}
    assert len(names) == 16
    assert [name for name in names if f"`{name}`" not in table] == []
    fields = {each.name for each in dataclass_fields(Measured)}
    assert [name for name in fields if getattr(everything, name) in (None, {}, [])] == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_prometheus_gets_them_over_http() -> None:
    async def scrape() -> str:
        async def measure() -> Measured:
            return MEASURED

        port = free_port()
        server = MetricsServer(("127.0.0.1", port), measure, ["server"])
        with pytest.raises(PlatformError, match="cannot be opened"):
            MetricsServer(("127.0.0.1", port), measure, ["server"])

        def fetch() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                text: str = answer.read().decode()
                return text

        try:
            return await asyncio.to_thread(fetch)
        finally:
            await server.stop()

    assert read(asyncio.run(scrape())) == read(exposition(MEASURED, ["server"]))


def with_server(client: Callable[[int], None]) -> None:
    """Run what a client does, given the port of a server."""

    async def story() -> None:
        async def measure() -> Measured:
            return MEASURED

        port = free_port()
        server = MetricsServer(("127.0.0.1", port), measure, ["server"])
        try:
            await asyncio.to_thread(client, port)
        finally:
            await server.stop()

    asyncio.run(story())


def is_served(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_clients_that_say_nothing_take_no_more_than_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection is a file that the daemon has open, and it needs files for its leases."""
    monkeypatch.setattr(metrics._Handler, "timeout", 60.0)

    def crowd(port: int) -> None:
        deadline = time.monotonic() + 20
        with contextlib.ExitStack() as stack:
            silent = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
                for _ in range(metrics.CLIENTS + 24)
            ]
            while len(select.select(silent, [], [], 0.1)[0]) < 24:
                assert time.monotonic() < deadline, "those without a place are not closed"
            assert len(select.select(silent, [], [], 0.1)[0]) == 24
        while not is_served(port):
            assert time.monotonic() < deadline, "the places of those who have gone are not free"

    with_server(crowd)


def test_a_client_that_says_nothing_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics._Handler, "timeout", 0.1)

    def wait(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as silent:
            assert silent.recv(1) == b""

    with_server(wait)
