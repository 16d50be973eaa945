"""What the roles do, in Prometheus' exposition format: through the local API, and over HTTP where configured."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from dnat import __version__
from dnat.errors import PlatformError
from dnat.types import Protocol, Purpose

COLLECT_SECONDS = 5.0
"""How long a scrape waits for the daemon."""
CLIENTS = 16
"""Connections of scrapers at once; further ones are closed."""
CLIENT_SECONDS = 5.0
"""How long a scraper may say, or read, nothing."""

Holding = tuple[str, Purpose, Protocol, int]
"""External address, purpose, protocol and number of ports of a lease."""


@dataclass(slots=True)
class Measured:
    """The figures of one moment; what a role does not have stays empty."""

    packets: dict[str, dict[str, int]] = field(default_factory=dict)
    """By role and reason."""
    messages: dict[str, dict[str, int]] = field(default_factory=dict)
    """PAP messages by side (``agent``, ``server``) and outcome."""
    leases: dict[str, list[Holding]] = field(default_factory=dict)
    """By role: what a host holds, what a server has granted."""
    pool: dict[str, int] = field(default_factory=dict)
    """Ports that may be leased, by external address."""
    holds: int | None = None
    keys: dict[str, int] = field(default_factory=dict)
    """By state."""
    bindings: int | None = None
    epoch_start: float | None = None
    owned: dict[str, int] = field(default_factory=dict)
    """Ports that a router has an owner for, by external address."""
    sip_running: bool | None = None
    sip_restarts: int | None = None
    connections: int | None = None
    """Of the local API."""
    program_leases: int | None = None
    store_reachable: bool | None = None
    """None with a store of this machine's own."""


Measure = Callable[[], Awaitable[Measured]]


def families(measured: Measured, roles: Iterable[str]) -> Iterator[object]:
    """The metrics, in the order of docs/operation.md."""
    yield InfoMetricFamily("dnat", "This daemon.", {"version": __version__, "roles": " ".join(roles)})
    packets = CounterMetricFamily("dnat_packets", "Packets by what was done with them.", labels=("role", "reason"))
    for role, counters in measured.packets.items():
        for reason, count in counters.items():
            packets.add_metric((role, reason), count)
    messages = CounterMetricFamily("dnat_pap_messages", "PAP messages by outcome.", labels=("side", "outcome"))
    for side, counters in measured.messages.items():
        for outcome, count in counters.items():
            messages.add_metric((side, outcome), count)
    labels = ("role", "address", "purpose", "protocol")
    leases = GaugeMetricFamily("dnat_leases", "Leases that stand.", labels=labels)
    ports = GaugeMetricFamily("dnat_leased_ports", "Ports that are leased.", labels=labels)
    for role, holdings in measured.leases.items():
        number: Tally[tuple[str, ...]] = Tally()
        of_ports: Tally[tuple[str, ...]] = Tally()
        for address, purpose, protocol, count in holdings:
            kind = (role, address, purpose.label, protocol.label)
            number[kind] += 1
            of_ports[kind] += count
        for each in number:
            leases.add_metric(each, number[each])
            ports.add_metric(each, of_ports[each])
    pool = GaugeMetricFamily("dnat_pool_ports", "Ports that may be leased.", labels=("address",))
    for address, count in measured.pool.items():
        pool.add_metric((address,), count)
    owned = GaugeMetricFamily("dnat_owned_ports", "Ports that packets are sent on for.", labels=("address",))
    for address, count in measured.owned.items():
        owned.add_metric((address,), count)
    keys = GaugeMetricFamily("dnat_keys", "Keys by state.", labels=("state",))
    for state, count in measured.keys.items():
        keys.add_metric((state,), count)
    yield from (packets, messages, leases, ports, pool, owned, keys)
    for name, text, value in (
        ("dnat_holds", "Freed ranges that wait for their former holder.", measured.holds),
        ("dnat_bindings", "Translations that stand.", measured.bindings),
        ("dnat_epoch_start_seconds", "When the server's lease state began, since 1970.", measured.epoch_start),
        ("dnat_program_leases", "Leases that belong to a program.", measured.program_leases),
        ("dnat_api_connections", "Clients of the local API.", measured.connections),
        ("dnat_sip_running", "Whether the SIP server runs.", measured.sip_running),
        ("dnat_store_reachable", "Whether the shared lease store answers.", measured.store_reachable),
    ):
        if value is not None:
            yield GaugeMetricFamily(name, text, value)
    if measured.sip_restarts is not None:
        yield CounterMetricFamily("dnat_sip_restarts", "How often the SIP server was restarted.", measured.sip_restarts)


class _Fixed(Collector):
    """Figures that were taken already."""

    def __init__(self, measured: Measured, roles: Iterable[str]) -> None:
        self._families = list(families(measured, roles))

    def collect(self) -> Iterable[object]:  # type: ignore[override]
        return self._families


def exposition(measured: Measured, roles: Iterable[str]) -> str:
    """The text that a scrape gets."""
    registry = CollectorRegistry()
    registry.register(_Fixed(measured, roles))
    return generate_latest(registry).decode()


class _Live(Collector):
    """Asks the daemon's loop, from the thread of the HTTP server."""

    def __init__(self, measure: Measure, roles: Iterable[str], loop: asyncio.AbstractEventLoop) -> None:
        self._measure = measure
        self._roles = roles
        self._loop = loop

    def describe(self) -> Iterable[object]:
        return ()

    def collect(self) -> Iterable[object]:  # type: ignore[override]
        async def measured() -> Measured:
            return await self._measure()

        return families(asyncio.run_coroutine_threadsafe(measured(), self._loop).result(COLLECT_SECONDS), self._roles)


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_SECONDS

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each of a few clients. Whoever can connect could else take all files that the daemon may open."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._places = threading.BoundedSemaphore(CLIENTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """That of a client, which has gone or says nothing."""


class MetricsServer:
    """HTTP for scrapes, in threads of its own: a slow client holds nobody up."""

    def __init__(self, listen: tuple[str, int], measure: Measure, roles: Iterable[str]) -> None:
        """Raises PlatformError."""
        registry = CollectorRegistry()
        registry.register(_Live(measure, roles, asyncio.get_running_loop()))
        try:
            self._server = make_server(*listen, make_wsgi_app(registry), _Server, _Handler)
        except OSError as error:
            raise PlatformError(
                f"metrics.listen: {listen[0]}:{listen[1]} cannot be opened ({error.strerror})"
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Finish the scrape that is under way."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)
