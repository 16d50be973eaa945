"""The PAP agent with a socket and a clock: awaitable requests, and a callback when the leases change."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path

from dnat import key_file
from dnat.daemon.alarm import Alarm
from dnat.daemon.clock import boottime
from dnat.daemon.pap_socket import PapSocket
from dnat.daemon.saved_leases import load_leases, save_leases
from dnat.errors import DnatError, PeerError
from dnat.pap import events
from dnat.pap.agent import Agent
from dnat.pap.auth import Key
from dnat.pap.credentials import Credentials
from dnat.pap.messages import AGENT_PORT, SERVER_PORT, Result, Want
from dnat.types import Lease

log = logging.getLogger(__name__)

BUSY_SECONDS = 20.0
"""How long a server may say that it is busy: all hosts come back at once after a power cut."""


SILENT_SENDS = 3
"""What is sent without an answer, before another server is asked where there are several: after about a second."""


ASK_AGAIN_SECONDS = 10.0
"""Until a question that failed is asked again, unless the server says when."""


class RefusedError(PeerError):
    """The server said no, and why."""

    def __init__(self, message: str, result: Result, retry_after: int | None) -> None:
        super().__init__(message)
        self.result = result
        self.retry_after = retry_after


def pause_after(error: DnatError) -> float:
    """Seconds until it makes sense to ask again."""
    return (error.retry_after if isinstance(error, RefusedError) else None) or ASK_AGAIN_SECONDS


class Leasing:
    """Keeps a host's leases alive and saves them, so that a restarted daemon goes on with them."""

    def __init__(
        self,
        host_id: bytes,
        servers: Sequence[IPv4Address],
        saved: Path,
        changed: Callable[[], None],
        tell: Callable[[events.Event], None],
        credentials: Credentials,
        key_file: Path,
        gateway: str = "",
    ) -> None:
        """``changed`` is called after every batch of events, ``tell`` with each of them; ``gateway`` names the LAN."""
        self._agent = Agent(host_id, lambda: secrets.randbits(64), credentials)
        self._credentials = credentials
        self._key_file = key_file
        self._servers = tuple(servers)
        self._server = self._servers[0]
        self._silence = 0
        self._failed: set[IPv4Address] = set()
        self._saved = saved
        self._gateway = gateway
        self._good_at = gateway
        """Where the leases are known to be good."""
        self._changed = changed
        self._tell = tell
        self._alarm = Alarm(self._tick, boottime)
        self._requests: dict[int, asyncio.Future[events.Granted]] = {}
        self._releases: dict[int, asyncio.Future[None]] = {}
        self._resume: asyncio.Future[None] | None = None
        self._counters: Counter[str] = Counter()
        self._socket: PapSocket
        self._broadcast: PapSocket | None = None

    @property
    def server(self) -> IPv4Address:
        return self._server

    @property
    def leases(self) -> tuple[Lease, ...]:
        return self._agent.leases

    @property
    def counters(self) -> dict[str, int]:
        return dict(self._agent.counters + self._socket.counters + self._counters)

    @property
    def key(self) -> Key | None:
        """The key that is in use."""
        return self._credentials.key

    def use_key(self, key: Key | None) -> None:
        """Use another key from now on."""
        self._credentials.key = key
        self._pump()

    def change_key(self) -> bool:
        """Agree with the server on a new key; False if that is not possible now."""
        asked = self._agent.change_key(boottime())
        self._pump()
        return asked

    async def open(self, address: IPv4Address, interface: str, broadcast: IPv4Address | None = None) -> None:
        """Open the agent's socket on the LAN address, and one on the LAN's broadcast address. Raises PlatformError."""
        self._socket = await PapSocket.open(address, AGENT_PORT, self._received, interface)
        if broadcast is not None:
            self._broadcast = await PapSocket.open(broadcast, AGENT_PORT, self._received, interface)

    def adopt_saved(self) -> bool:
        """Take up the leases that an earlier daemon left; False when there are none that still stand."""
        saved = load_leases(self._saved, boottime())
        if saved is None:
            return False
        self._good_at = saved.gateway or self._gateway
        self._agent.adopt(saved.leases, boottime(), saved.epoch)
        self._pump()
        return True

    @property
    def elsewhere(self) -> bool:
        """Whether the leases are another LAN's, as far as is known: they are not to be used before `resume`."""
        return self._good_at != self._gateway

    async def resume(self) -> None:
        """Ask the server which leases this host holds. Raises PeerError when nobody answers."""
        self._resume = asyncio.get_running_loop().create_future()
        self._agent.resume(boottime())
        self._pump()
        await self._resume
        if self.elsewhere:
            self._good_at = self._gateway
            self._save()

    async def request(self, want: Want) -> events.Granted:
        """Ask for ports: a busy server several times, another one where the store failed or one is drained.

        Raises RefusedError, or PeerError when nobody answers.
        """
        patient_until = boottime() + BUSY_SECONDS
        others = len(self._servers) - 1
        while True:
            try:
                return await self._request(want)
            except RefusedError as refused:
                if refused.result in (Result.STORE_FAILED, Result.SHUTTING_DOWN) and others:
                    others -= 1
                    if refused.result is Result.SHUTTING_DOWN:
                        self._ask_another()  # for a store that failed `_store_failed` has done so
                    continue
                if refused.result is not Result.BUSY or boottime() >= patient_until:
                    raise
                await asyncio.sleep((refused.retry_after or 1) * (0.5 + secrets.randbelow(1000) / 1000))

    async def _request(self, want: Want) -> events.Granted:
        ticket = self._agent.want(want, boottime())
        self._requests[ticket] = asyncio.get_running_loop().create_future()
        self._pump()
        return await self._requests[ticket]

    async def release(self, lease_ids: list[int]) -> None:
        """Give leases back and wait until the server has confirmed."""
        for lease_id in lease_ids:
            self._releases[lease_id] = asyncio.get_running_loop().create_future()
            self._agent.release(lease_id, boottime())
        waiting = [self._releases[lease_id] for lease_id in lease_ids]
        self._pump()
        await asyncio.gather(*waiting)

    def close(self) -> None:
        self._alarm.set(None)
        self._socket.close()
        if self._broadcast is not None:
            self._broadcast.close()

    def _received(self, datagram: bytes, source: tuple[IPv4Address, int]) -> None:
        if source[0] not in self._servers or source[1] != SERVER_PORT:
            self._counters["not-from-server"] += 1
            return
        if source[0] == self._server:
            self._silence = 0
        self._agent.receive(datagram, boottime())
        self._pump(source[0])

    def _tick(self) -> None:
        self._agent.timeout(boottime())
        self._pump()

    def _ask_another(self) -> None:
        """The next server from now on: they share a store, so it knows what this host holds."""
        if len(self._servers) > 1:
            place = self._servers.index(self._server)
            self._server = self._servers[(place + 1) % len(self._servers)]
            self._silence = 0
            log.warning("asking the server %s from now on", self._server)

    def _store_failed(self, server: IPv4Address | None) -> None:
        """That server may be cut off from a store that the others still have. Each is tried at once, then in turn."""
        if server != self._server:
            return
        self._failed.add(server)
        self._ask_another()
        if self._server not in self._failed:
            self._agent.hurry(boottime())

    def _pump(self, to: IPv4Address | None = None) -> None:
        """Send what the core wants sent, and act on what happened. ``to``: whose datagram is being answered."""
        happened = self._agent.events()
        for event in happened:
            if isinstance(event, events.StoreFailed):
                self._store_failed(to)
            self._act(event)
            self._tell(event)
        datagrams = self._agent.datagrams()
        if datagrams and to is None:
            self._silence += 1
            if self._silence > SILENT_SENDS:
                self._ask_another()
        for datagram in datagrams:
            self._socket.send(datagram, (to or self._server, SERVER_PORT))
        if happened:
            self._save()
            self._changed()
        self._alarm.set(self._agent.next_deadline)

    def _save(self) -> None:
        try:
            save_leases(self._saved, self._agent.leases, self._agent.epoch_state, self._good_at)
        except OSError as error:
            # A restarted daemon would go on with outdated leases; without the file it asks the server.
            self._saved.unlink(missing_ok=True)
            log.error("%s cannot be written: %s", self._saved, error.strerror)

    def _act(self, event: events.Event) -> None:
        match event:
            case events.Renewed():
                self._failed.clear()
            case events.Granted(ticket=ticket):
                self._failed.clear()
                if future := self._requests.pop(ticket, None):
                    future.set_result(event)
            case events.Refused(ticket=None):
                if self._resume is not None and not self._resume.done():
                    self._resume.set_exception(RefusedError(_refusal(event), event.result, event.retry_after))
            case events.Refused(ticket=int(ticket)):
                self._fail(ticket, RefusedError(_refusal(event), event.result, event.retry_after))
            case events.Unanswered(ticket=ticket, attempts=attempts):
                self._unanswered(ticket, attempts)
            case events.Resumed():
                if self._resume is not None and not self._resume.done():
                    self._resume.set_result(None)
            case events.Released(lease_id=lease_id):
                self._failed.clear()
                if released := self._releases.pop(lease_id, None):
                    released.set_result(None)
            case events.KeyAgreed(key=key):
                key_file.save(self._key_file, key)
                log.info("agreed with the server on key %s", key.label)
            case events.EpochLost():
                log.warning("the server lost its leases: registering ours again")
            case _:
                pass

    def _unanswered(self, ticket: int | None, attempts: int) -> None:
        error = PeerError(
            f"no PAP server answered at {self._server}, asked {attempts} times. Is dnat up there with the role"
            ' "server"? If it is elsewhere, set host.server in /etc/dnat/dnat.toml'
        )
        if self._agent.disbelieved is not None and self._credentials.key is not None:
            error = PeerError(
                f"{self._server} does not show that it has this host's key {self._credentials.key.label}, and refuses"
                f" ({self._agent.disbelieved.label}). If its operator has removed the key: dnatctl key forget, here"
            )
        if ticket is not None:
            self._fail(ticket, error)
        elif self._resume is not None and not self._resume.done():
            self._resume.set_exception(error)
        elif self._releases:
            for released in self._releases.values():
                released.set_exception(error)
            self._releases.clear()
        else:
            log.warning("%s", error)

    def _fail(self, ticket: int, error: PeerError) -> None:
        if future := self._requests.pop(ticket, None):
            future.set_exception(error)


_ADVICE = {
    Result.POOL_EXHAUSTED: "ask for fewer ports, release some, or let the operator widen server.ports",
    Result.PORT_TAKEN: "another host has it: ask for other ports; `dnatctl show owners` on the server says who",
    Result.PORT_HELD: "it was freed a moment ago and is kept back for a while",
    Result.OUTSIDE_POOL: "the server does not give out these ports; see server.ports and server.specific_ports there",
    Result.KEY_REQUIRED: "this host needs a key: `dnatctl key add NAME` there, `dnatctl key install` here",
    Result.NOT_AUTHORIZED: "its operator has to allow this host: `dnatctl key list` there",
    Result.SHUTTING_DOWN: "its operator is about to stop it; what ends that: `dnatctl drain --off` there",
    Result.STORE_FAILED: "it cannot write down its leases: its log says why",
    Result.QUOTA_EXCEEDED: "release ports that are not needed: dnatctl release",
}


def _refusal(event: events.Refused) -> str:
    """One sentence: what the server said, and what to do."""
    said = event.reason or event.result.label.replace("-", " ")
    advice = _ADVICE.get(event.result)
    if advice and event.retry_after:
        advice += f"; try again in {event.retry_after} s"
    return f"the server refused: {said}" + (f" ({advice})" if advice else "")
