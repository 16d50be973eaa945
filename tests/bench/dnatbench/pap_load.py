"""Questions of many hosts at a given rate, as perfdhcp does it for DHCP: what was answered, and how long that took.

A process of its own, so that it and the server have a CPU each. Datagrams are made and sealed beforehand: what is left
to do meanwhile is to send them when they are due and to note when the answers come.
"""

from __future__ import annotations

import gc
import json
import secrets
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address

from dnat.pap.auth import Direction, Key, Stamper, seal
from dnat.pap.codec import decode, encode
from dnat.pap.messages import AGENT_PORT, SERVER_PORT, LeaseInfo, Message, MessageType, Want
from dnat.types import Protocol, Purpose

PORTS = 64
WANT = Want(count=PORTS, protocol=Protocol.ANY, purpose=Purpose.EPHEMERAL)
LATE = 0.25
"""Seconds after which an answer counts as lost: a queue that grows is no rate that is kept."""
NAP = 0.0003
"""Seconds for which the sender sleeps when nothing is due, rather than take the server's CPU by looking all the time.
An answer may have come that much earlier than is noted.
"""
_IP_PKTINFO = 8


@dataclass
class Host:
    """A host with a key and the leases that it was granted."""

    number: int
    key: Key
    leases: list[LeaseInfo] = field(default_factory=list)

    @property
    def id(self) -> bytes:
        return (self.number + 1).to_bytes(16)


@dataclass(frozen=True)
class Plan:
    """What is to be sent. Comes as JSON on standard input; the outcome goes to standard output."""

    server: str
    first_address: str
    """Of host number 0; the others follow."""
    secrets: list[str]
    """Of the keys of hosts 0, 1, …, whose identifiers are 1, 2, …"""
    phases: list[tuple[int, int, float]]
    """One after the other: how many leases are asked for by all hosts in turn; how many of those granted in earlier
    phases are renewed in between, one in each question; and how many questions go out in a second.
    """


@dataclass(frozen=True)
class Outcome:
    """Of one kind of question in the last phase."""

    sent: int
    answered: int
    """In time, and with SUCCESS."""
    latencies: list[float]
    """Milliseconds, of all that were answered."""
    behind: float
    """Milliseconds that the sender was late at most: it must not be what is measured."""
    busy: float
    """Part of a CPU that the sender used; must stay below 1 for the same reason."""


class Load:
    """One socket that speaks for every host."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._first = IPv4Address(plan.first_address)
        self._hosts = [Host(n, Key(n + 1, bytes.fromhex(secret))) for n, secret in enumerate(plan.secrets)]
        self._stampers = [Stamper(time.time()) for _ in self._hosts]
        self._to = (plan.server, SERVER_PORT)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        self._socket.bind(("", AGENT_PORT))
        self._answers: dict[bytes, tuple[float, bytes]] = {}

    def run(self) -> dict[str, Outcome]:
        """All phases; what came of the last: ``grants`` and ``renewals``."""
        outcomes: dict[str, Outcome] = {}
        for grants, renewals, rate in self._plan.phases:
            outcomes = self._ask(self._questions(grants, renewals), rate)
        return outcomes

    def _questions(self, grants: int, renewals: int) -> list[tuple[Host, Message]]:
        """Neighbours are different hosts: each has a rate that it may ask at."""
        turns = [self._hosts[number % len(self._hosts)] for number in range(grants)]
        asked = [(host, self._question(host, want=WANT)) for host in turns]
        deepest = max((len(host.leases) for host in self._hosts), default=0)
        held = [(host, host.leases[n]) for n in range(deepest) for host in self._hosts if n < len(host.leases)]
        renewed = [(host, self._question(host, leases=(lease,))) for host, lease in held[:renewals]]
        mixed = [each for pair in zip(asked, renewed, strict=False) for each in pair]
        both = min(len(asked), len(renewed))
        return mixed + asked[both:] + renewed[both:]

    def _question(self, host: Host, **fields: object) -> Message:
        return Message(MessageType.REQUEST, secrets.randbits(64), host_id=host.id, **fields)  # type: ignore[arg-type]

    def _ask(self, questions: list[tuple[Host, Message]], rate: float) -> dict[str, Outcome]:
        prepared = [(self._sealed(host, message), _source(self._first + host.number)) for host, message in questions]
        self._answers = {}
        sent_at: list[float] = []
        send, clock, to = self._socket.sendmsg, time.perf_counter, self._to
        started, spent, behind = clock(), time.process_time(), 0.0
        for number, (octets, control) in enumerate(prepared):
            due = started + number / rate
            while (now := clock()) < due:
                time.sleep(max(due - now, NAP))
                self._take_in()
            behind = max(behind, now - due)
            sent_at.append(now)
            send((octets,), control, 0, to)
            if not number % 8:
                self._take_in()
        while len(self._answers) < len(prepared) and clock() < sent_at[-1] + LATE:
            time.sleep(NAP)
            self._take_in()
        busy = (time.process_time() - spent) / (clock() - started)
        asked = list(zip(questions, sent_at, strict=True))
        return {
            "grants": self._outcome([each for each in asked if each[0][1].want], behind, busy),
            "renewals": self._outcome([each for each in asked if each[0][1].leases], behind, busy),
        }

    def _sealed(self, host: Host, message: Message) -> bytes:
        stamp = self._stampers[host.number].next(time.time())
        return seal(encode(message), host.key, Direction.FROM_AGENT, self._first + host.number, stamp)

    def _take_in(self) -> None:
        receive, clock, answers = self._socket.recv, time.perf_counter, self._answers
        try:
            while True:
                octets = receive(2048)
                answers.setdefault(octets[8:16], (clock(), octets))
        except BlockingIOError:
            pass

    def _outcome(self, asked: list[tuple[tuple[Host, Message], float]], behind: float, busy: float) -> Outcome:
        latencies, good = [], 0
        for (host, message), sent in asked:
            came = self._answers.get(message.transaction.to_bytes(8))
            if came is None:
                continue
            latencies.append((came[0] - sent) * 1e3)
            answer = decode(came[1])
            if answer.result.ok and answer.leases and answer.leases[0].lifetime and came[0] <= sent + LATE:
                good += 1
                if message.want is not None:
                    host.leases += answer.leases
        return Outcome(len(asked), good, latencies, behind * 1e3, busy)


def _source(address: IPv4Address) -> list[tuple[int, int, bytes]]:
    """Ancillary data that make a datagram come from an address (ip(7), IP_PKTINFO)."""
    return [(socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=i4s4s", 0, address.packed, bytes(4)))]


def main() -> None:
    # To look for garbage among so many messages takes tens of milliseconds.
    gc.disable()
    outcomes = Load(Plan(**json.load(sys.stdin))).run()
    json.dump({kind: asdict(outcome) for kind, outcome in outcomes.items()}, sys.stdout)


if __name__ == "__main__":
    main()
