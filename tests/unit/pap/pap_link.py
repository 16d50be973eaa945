"""A LAN in memory: agents, a server with a store, a link that loses, repeats and reorders, and a transcript.

Time is virtual. Draws are chosen so that jitter is nil and every transcript has round times.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network

from durable import DurableLeases

from dnat.daemon.agreement import X25519Agreement
from dnat.leases.pool import Pool
from dnat.leases.records import LeaseRecord
from dnat.pap.agent import Agent
from dnat.pap.answers import Step
from dnat.pap.auth import Key
from dnat.pap.codec import decode
from dnat.pap.credentials import Credentials
from dnat.pap.events import (
    EpochLost,
    Event,
    Granted,
    KeyAgreed,
    Lost,
    Refused,
    Released,
    Renewed,
    Resumed,
    StoreFailed,
    Unanswered,
)
from dnat.pap.guard import Guard, Limits, Mode
from dnat.pap.keyring import DropKey, KeyChange, KeyRecord, Keyring, PutKey
from dnat.pap.messages import AGENT_PORT, Message, MessageType, Want
from dnat.pap.policy import Policy
from dnat.pap.server import Server
from dnat.types import Lease, PortRange, Protocol, Purpose

EXTERNAL = IPv4Address("198.51.100.1")
LAN = IPv4Network("10.66.0.0/24")
FOUR_BLOCKS = Pool((EXTERNAL,), (PortRange(20480, 20735),), (PortRange(5060, 5061),))
LATENCY = 0.01
BLOCK = Want(64, Protocol.ANY, Purpose.EPHEMERAL)
SIP = Want(1, Protocol.UDP, Purpose.EXPLICIT, first=5060)

Fate = Callable[[bytes], Iterable[float]]
"""For each copy of a datagram that arrives, how long it is under way; none for a loss."""


class Store(DurableLeases):
    """What is durable."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[int, KeyRecord] = {}

    def write_keys(self, changes: Iterable[KeyChange]) -> None:
        for change in changes:
            match change:
                case PutKey(record):
                    self.keys[record.key.id] = record
                case DropKey(key_id):
                    del self.keys[key_id]


class Host:
    """A machine with an agent."""

    def __init__(self, name: str, address: IPv4Address, agent: Agent) -> None:
        self.name = name
        self.address = address
        self.agent = agent
        self.events: list[Event] = []
        self.key: Key | None = None
        """What its key file says."""

    @property
    def ports(self) -> list[str]:
        return [str(lease.ports) for lease in self.agent.leases]


class Network:
    """Everything, and what was said."""

    def __init__(
        self,
        pool: Pool = FOUR_BLOCKS,
        policy: Policy | None = None,
        mode: Mode | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Without a mode the server has no guard, and hosts no credentials."""
        self.now = 0.0
        self.mode = mode
        self.limits = limits
        self.wire: list[tuple[bytes, str]] = []
        """Every datagram that was sent, and who sent it."""
        self.pool = pool
        self.policy = policy or Policy((LAN,))
        self.store = Store()
        self.fate: Fate = lambda octets: [LATENCY]
        self.commit_time = 0.0
        """Seconds that a commit takes."""
        self.grace = 0.0
        self.broken_until = 0.0
        """The store fails until then."""
        self.on_change: Callable[[], None] = lambda: None
        """Called after everything that happens."""
        self._lines: list[str] = []
        self._lost: list[tuple[str, int]] = []
        self._silent = False
        self._draws = itertools.count(2**63)
        self._serial = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._committing: list[Step] | None = None
        self.epoch_start = 0.0
        self.hosts: dict[IPv4Address, Host] = {}
        self.unplugged: set[str] = set()
        """Names of hosts that hear and say nothing."""
        self.server: Server | None = self._new_server()

    def draw(self) -> int:
        return next(self._draws)

    def host(self, name: str, last_octet: int) -> Host:
        """A host at 10.66.0.LAST_OCTET."""
        address = LAN[last_octet]
        host_id = last_octet.to_bytes(16, "big")
        host = self.hosts[address] = Host(name, address, Agent(host_id, self.draw, self._credentials(address, None)))
        return host

    def reboot(self, host: Host, skew: float = 0.0) -> None:
        """The host forgets everything but who it is and its key; its clock goes wrong by ``skew`` seconds."""
        host.agent = Agent(host.agent.host_id, self.draw, self._credentials(host.address, host.key, skew))

    def _credentials(self, address: IPv4Address, key: Key | None, skew: float = 0.0) -> Credentials | None:
        return Credentials(address, skew, key, X25519Agreement) if self.mode else None

    @property
    def guard(self) -> Guard:
        assert self.server is not None and self.server.guard is not None
        return self.server.guard

    def move(self, host: Host, last_octet: int) -> None:
        """The host gets another LAN address."""
        del self.hosts[host.address]
        host.address = LAN[last_octet]
        self.hosts[host.address] = host
        if host.agent.credentials is not None:
            host.agent.credentials.address = host.address

    # The link

    def lose(self, type_: str, times: int = 1) -> None:
        """Lose the next datagrams of a type."""
        self._lost.append((type_, times))

    def repeat(self, type_: str) -> None:
        """From now on datagrams of a type arrive twice."""
        self.fate = lambda octets: [LATENCY] * (2 if decode(octets).type.name == type_ else 1)

    def _send(self, octets: bytes, source: str, target: str, arrive: Callable[[], None]) -> None:
        message = decode(octets)
        self.wire.append((octets, source))
        lost = bool(self.unplugged & {source, target})
        if self._lost and self._lost[0][0] == message.type.name:
            type_, times = self._lost.pop(0)
            lost = True
            if times > 1:
                self._lost.insert(0, (type_, times - 1))
        self._write(f"{source} > {target}: {describe(message)}{' (lost)' if lost else ''}")
        for delay in () if lost else self.fate(octets):
            self.at(self.now + delay, arrive)

    # The server's machine

    def stop_server(self, durable: bool = False) -> None:
        """Kill the server; ``durable``: the commit that was under way came through, the answers did not."""
        if durable and self._committing is not None:
            self._write_steps(self._committing)
        self._committing = None
        self.server = None

    def start_server(self, *, announce: bool = False, learn: float = 0.0) -> None:
        """A fresh process in place of the one that runs, if one does."""
        self.stop_server()
        self.server = self._new_server()
        if announce:
            self.server.begin(self.now, (LAN.broadcast_address,), learn)

    def lose_store(self, learn: float = 0.0) -> None:
        """The server comes back without leases; keys are stored apart."""
        self.stop_server()
        keys, self.store = self.store.keys, Store()
        self.store.keys = keys
        self.epoch_start = self.now
        self.start_server(announce=learn > 0, learn=learn)

    def _new_server(self) -> Server:
        guard = None
        if self.mode is not None:
            keyring = Keyring(self.draw, self.store.keys.values())
            guard = Guard(self.mode, keyring, b"cookie secret", X25519Agreement, self.now, self.limits)
        return Server(self.store.table(self.pool, self.grace), self.draw, self.policy, self.epoch_start, guard)

    def _write_steps(self, steps: list[Step]) -> None:
        self.store.write_keys(change for step in steps for change in step.keys)
        self.store.write(change for step in steps for change in step.changes)

    def _commit(self) -> None:
        if self.server is None or self._committing is not None:
            return
        batch = self.server.steps()
        if batch and self.commit_time and any(step.changes or step.keys for step in batch):
            self._committing = batch
            self.at(self.now + self.commit_time, lambda: self._commit_done(batch))
        elif batch:
            self._committing = batch
            self._commit_done(batch)

    def _commit_done(self, batch: list[Step]) -> None:
        if self._committing is not batch or self.server is None:
            return
        self._committing = None
        if self.now < self.broken_until and any(step.changes or step.keys for step in batch):
            for step in batch:
                self.server.failed(step, self.now)
            self.server.reset_table(self.store.table(self.pool, self.grace), self.now)
            if self.server.guard is not None:
                self.server.guard.keyring = Keyring(self.draw, self.store.keys.values())
        else:
            self._write_steps(batch)
            for step in batch:
                for octets, (address, _) in step.datagrams:
                    self._send_to_host(octets, address)
                self.server.committed(step, self.now)
        self._commit()

    def _send_to_host(self, octets: bytes, address: IPv4Address) -> None:
        everybody = address == LAN.broadcast_address
        for host in [each for each in self.hosts.values() if everybody or each.address == address]:
            self._send(octets, "server", host.name, lambda host=host: host.agent.receive(octets, self.now))

    def _send_to_server(self, octets: bytes, host: Host) -> None:
        source = (host.address, AGENT_PORT)

        def arrive() -> None:
            if self.server is not None:
                self.server.receive(octets, source, self.now)

        self._send(octets, host.name, "server", arrive)

    def say(self, octets: bytes, last_octet: int, port: int = AGENT_PORT) -> None:
        """A stranger sends the server a datagram with this source address."""
        assert self.server is not None
        self.server.receive(octets, (LAN[last_octet], port), self.now)
        self.settle()

    # Time

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._serial), action))

    def settle(self) -> None:
        """Send and commit what is ready to be."""
        for host in tuple(self.hosts.values()):
            for event in host.agent.events():
                host.events.append(event)
                if isinstance(event, KeyAgreed):
                    host.key = event.key
                self._write(f"{host.name}: {describe_event(event)}")
            for octets in host.agent.datagrams():
                self._send_to_server(octets, host)
        self._commit()
        self.on_change()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        self.settle()
        while (when := self._next()) is not None and when <= end:
            self.now = max(self.now, when)
            while self._due and self._due[0][0] <= self.now:
                heapq.heappop(self._due)[2]()
                self.settle()
            for host in tuple(self.hosts.values()):
                host.agent.timeout(self.now)
            if self.server is not None:
                self.server.timeout(self.now)
            self.settle()
        self.now = end

    def _next(self) -> float | None:
        times = [self._due[0][0]] if self._due else []
        times += [each for host in self.hosts.values() if (each := host.agent.next_deadline) is not None]
        if self.server is not None and (deadline := self.server.next_deadline) is not None:
            times.append(deadline)
        return min(times, default=None)

    # The transcript

    def silent(self, seconds: float) -> None:
        """Let time pass off the record."""
        self._silent = True
        self.run(seconds)
        self._silent = False

    def _write(self, line: str) -> None:
        if not self._silent:
            self._lines.append(f"{self.now:.2f} {line}")

    def transcript(self) -> list[str]:
        """What was said since the last call."""
        result, self._lines = self._lines, []
        return result

    def expect(self, text: str) -> None:
        """The transcript since the last call is this one."""
        expected = [line.strip() for line in text.strip().splitlines()]
        assert self.transcript() == expected


def describe(message: Message) -> str:
    words = [message.type.name]
    if message.type in (MessageType.RESPONSE, MessageType.ACK, MessageType.INVALIDATE):
        words.append(message.result.label)
    if message.want is not None:
        want = message.want
        words += ["want", str(want.ports or want.count), want.protocol.label, want.purpose.label]
    if message.resume:
        words.append("resume")
    if message.key_share is not None:
        words.append("key-share")
    if message.new_key:
        words.append("new-key")
    for lease in message.leases:
        words += [f"{lease.ports}/{lease.protocol.label}"]
        if message.type is MessageType.RESPONSE:
            words += [f"{lease.lifetime}s"]
    if message.retry_after is not None:
        words.append(f"retry after {message.retry_after}s")
    return " ".join(words)


def describe_event(event: Event) -> str:
    match event:
        case Granted(_, lease, fewer):
            return f"granted {lease.ports}{', fewer' if fewer else ''}"
        case Refused(_, result):
            return f"refused {result.label}"
        case Renewed(lease):
            return f"renewed {lease.ports} until {lease.expires_at:.2f}"
        case Lost(lease, result):
            return f"lost {lease.ports} {result.label if result else 'expired'}"
        case Resumed(leases):
            return f"resumed {' '.join(str(lease.ports) for lease in leases) or 'nothing'}"
        case Unanswered(_, attempts):
            return f"unanswered after {attempts}"
        case Released():
            return "released"
        case StoreFailed():
            return "the store failed"
        case KeyAgreed(key):
            return f"agreed on key {key.id & 0xFF}"
        case EpochLost():
            return "epoch lost"


def overlap(one: Lease | LeaseRecord, other: Lease | LeaseRecord) -> bool:
    same_ports = one.address == other.address and one.ports.overlaps(other.ports)
    return same_ports and one.protocol.overlaps(other.protocol)
