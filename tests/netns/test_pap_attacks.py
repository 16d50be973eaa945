"""A stranger on the LAN who records, forges, repeats, cuts, swells and turns around what others say, on real daemons.

Each attempt is counted under its name, and nothing comes of it. More of it, in memory: tests/unit/pap/test_attacks.py.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from nodes import Machine, eventually
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from small import Small

from dnat.capture import pap_layer as pap
from dnat.pap.codec import decode
from dnat.pap.messages import AGENT_PORT, SERVER_PORT, MessageType
from dnat.system import netns


@dataclass
class Stranger:
    """Has a port of the switch that mirrors others, and sends from any address. It hears itself, too: listen first."""

    small: Small
    mirror: socket.socket
    sender: socket.socket
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    """Source address and message."""

    def listen(self) -> None:
        """Take in what was said so far."""
        while True:
            try:
                packet = Ether(self.mirror.recv(2048))
            except BlockingIOError:
                return
            if UDP in packet and {packet[UDP].sport, packet[UDP].dport} == {SERVER_PORT, AGENT_PORT}:
                octets = bytes(packet[UDP].payload)
                if (packet[IP].src, octets) not in self.heard:
                    self.heard.append((packet[IP].src, octets))

    def recorded(self, source: Machine, kind: MessageType) -> list[bytes]:
        """Sealed messages of a machine, the latest last."""
        self.listen()
        mine = [octets for address, octets in self.heard if address == source.address]
        return [octets for octets in mine if decode(octets).type is kind and decode(octets).auth is not None]

    def say(self, octets: bytes, source: str, target: Machine) -> None:
        """As if from that address and its port."""
        to_server = target is self.small.server
        sport, dport = (AGENT_PORT, SERVER_PORT) if to_server else (SERVER_PORT, AGENT_PORT)
        packet = IP(src=source, dst=target.address) / UDP(sport=sport, dport=dport) / octets
        self.sender.sendto(bytes(packet), (target.address, 0))


@pytest.fixture
def stranger(small: Small) -> Iterator[Stranger]:
    """The host is up and has a key; what it and the server said was recorded."""
    small.serve('authentication = "tofu"')
    with ExitStack() as stack:
        with netns.enter(small.server.namespace):
            mirror = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
            mirror.bind(("port1", 3))
            mirror.setblocking(False)
        sender = stack.enter_context(small.other.raw_socket())
        small.host.dnatctl("up")
        small.host.dnatctl("release", str(small.host.request("--ports", "1")["first"]))
        yield Stranger(small, mirror, sender)


def _counts(machine: Machine, side: str) -> dict[str, int]:
    counted: dict[str, int] = machine.call("show")["pap"][side]
    return counted


def _packet(octets: bytes, change: Callable[[pap.PAP], None]) -> bytes:
    packet = pap.PAP(octets)
    packet.clear_cache()
    change(packet)
    packet.length = None
    return bytes(packet)


def _forged(question: bytes) -> bytes:
    return _packet(question, lambda packet: packet.attributes.pop())


def _with_unknown_key(question: bytes) -> bytes:
    return _packet(question, lambda packet: setattr(packet.attributes[-1], "key_id", 0xBADBADBA))


def _with_unknown_algorithm(question: bytes) -> bytes:
    return _packet(question, lambda packet: setattr(packet.attributes[-1], "algorithm", 77))


def _changed(message: bytes) -> bytes:
    """One bit, where any is allowed: the epoch's last."""
    return message[:19] + bytes([message[19] ^ 1]) + message[20:]


def _truncated(question: bytes) -> bytes:
    return question[:-7]


def _truncated_honestly(question: bytes) -> bytes:
    """With the length that it has, so that more than the header is looked at."""
    return question[:4] + (len(question) - 7).to_bytes(2) + question[6:-7]


def _oversized(question: bytes) -> bytes:
    filler = pap.PAPAttribute(type=0x0123, value=bytes(1200))
    return _packet(question, lambda packet: packet.attributes.insert(1, filler))


def _unchanged(message: bytes) -> bytes:
    return message


QUESTIONS = [
    (_forged, "key-missing"),
    (_with_unknown_key, "unknown-key"),
    (_with_unknown_algorithm, "unknown-algorithm"),
    (_changed, "bad-tag"),
    (_truncated, "malformed"),
    (_truncated_honestly, "malformed"),
    (_oversized, "malformed"),
    (_unchanged, "replayed"),
]


def _is_honest(counter: str) -> bool:
    """A server that has started says so for some seconds, and hosts renew; a busy machine has them ask twice."""
    return counter in {"announce-no-news", "repeat"} or counter.endswith("-success")


def _attempt(stranger: Stranger, octets: bytes, source: str, target: Machine, counter: str) -> None:
    """Say it five times; all of it is counted under one name."""
    side = "server" if target is stranger.small.server else "agent"
    before = _counts(target, side)
    for _ in range(5):
        stranger.say(octets, source, target)
    expected = before.get(counter, 0) + 5
    eventually(lambda: _counts(target, side).get(counter, 0) == expected, f"five more are counted as {counter}")
    changed = {name for name, count in _counts(target, side).items() if count != before.get(name, 0)}
    assert {name for name in changed if not _is_honest(name)} == {counter}


def test_a_server_that_is_lied_to(stranger: Stranger) -> None:
    small = stranger.small
    held, known = small.host.leases(), small.server.leases()
    questions = [
        *stranger.recorded(small.host, MessageType.REQUEST),
        *stranger.recorded(small.host, MessageType.RELEASE),
    ]
    answers, acks = (stranger.recorded(small.server, kind) for kind in (MessageType.RESPONSE, MessageType.ACK))
    assert {decode(each).type for each in questions} == {MessageType.REQUEST, MessageType.RELEASE}
    for question in (questions[0], questions[-1]):
        for change, counter in QUESTIONS:
            _attempt(stranger, change(question), small.host.address, small.server, counter)
        _attempt(stranger, question, small.other.address, small.server, "bad-tag")
    for answer in answers:
        _attempt(stranger, answer, small.host.address, small.server, "unexpected-type")
    for answer in acks:
        _attempt(stranger, answer, small.host.address, small.server, "no-open-invalidation")
    small.server.kill()
    small.serve('authentication = "tofu"')
    _attempt(stranger, questions[0], small.host.address, small.server, "stale")
    assert (small.host.leases(), small.server.leases()) == (held, known)
    small.host.dnatctl("release", str(small.host.request("--ports", "1")["first"]))


def test_messages_that_overtake_each_other_are_served(stranger: Stranger) -> None:
    """Genuine questions, held back on the way and delivered in reverse: each is acted on once."""
    small = stranger.small
    host = small.host
    host.run("ip", "neigh", "replace", small.server.address, "lladdr", "02:00:00:00:00:99", "dev", "eth0")
    before = len(stranger.recorded(host, MessageType.REQUEST))
    asking = [netns.popen(["dnatctl", "request"], host.namespace, stdout=-3, stderr=-3) for _ in range(3)]
    eventually(lambda: len(stranger.recorded(host, MessageType.REQUEST)) >= before + 6, "they ask into the void", 20)
    kept = stranger.recorded(host, MessageType.REQUEST)[before:]
    host.run("ip", "neigh", "del", small.server.address, "dev", "eth0")
    for question in reversed(kept):
        stranger.say(question, host.address, small.server)
    for process in asking:
        assert process.wait(30) == 0
    explicit = [lease for lease in small.server.leases() if lease["purpose"] == "explicit"]
    assert len(explicit) == 3
    assert explicit == [lease | {"host": host.address} for lease in host.leases() if lease["purpose"] == "explicit"]
    stale = _counts(small.server, "server").get("stale", 0)
    assert stale == 0


def test_a_host_that_is_lied_to(stranger: Stranger) -> None:
    small = stranger.small
    port = small.host.request("--ports", "1")["first"]
    small.server.dnatctl("invalidate", str(port))
    eventually(lambda: stranger.recorded(small.server, MessageType.INVALIDATE), "a port was taken back")
    eventually(lambda: len(small.host.leases()) == 2, "the host has given it up")
    held, server = small.host.leases(), small.server.address
    (invalidate, *_) = stranger.recorded(small.server, MessageType.INVALIDATE)
    answers = stranger.recorded(small.server, MessageType.RESPONSE)
    questions = stranger.recorded(small.host, MessageType.REQUEST)
    for message in (invalidate, answers[-1]):
        _attempt(stranger, _forged(message), server, small.host, "without-auth")
        _attempt(stranger, _with_unknown_key(message), server, small.host, "unknown-key")
        _attempt(stranger, _changed(message), server, small.host, "bad-tag")
        _attempt(stranger, _truncated(message), server, small.host, "malformed")
        _attempt(stranger, _oversized(message), server, small.host, "malformed")
    _attempt(stranger, invalidate, server, small.host, "replayed")
    for answer in answers[1:]:
        _attempt(stranger, answer, server, small.host, "no-open-question")
    for question in questions:
        _attempt(stranger, question, server, small.host, "bad-tag")
    _attempt(stranger, invalidate, small.other.address, small.host, "not-from-server")
    assert small.host.leases() == held
    small.host.dnatctl("release", str(small.host.request("--ports", "1")["first"]))
