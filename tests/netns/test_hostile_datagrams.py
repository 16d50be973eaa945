"""Datagrams that no honest peer sends: they are counted, and change nothing."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterator

import pytest
from nodes import Machine, eventually
from scapy.layers.inet import IP, UDP
from scapy.packet import Packet
from small import EXTERNAL, Small

from dnat.capture.pap_layer import PAP, PAPHostId, PAPLease, PAPReason, PAPResume, PAPWant
from dnat.pap.messages import AGENT_PORT, SERVER_PORT
from dnat.system import netns

BATCH = 25
"""Datagrams sent at once: few enough for the smallest receive buffer."""


@pytest.fixture
def up(small: Small) -> Small:
    small.serve()
    small.host.dnatctl("up")
    return small


def _host_id(rng: random.Random) -> PAPHostId:
    return PAPHostId(host_id=rng.randbytes(16))


def _questions(rng: random.Random) -> list[Packet]:
    """Well-formed messages of agents."""
    lease = PAPLease(id=rng.getrandbits(64), address=EXTERNAL, first=20000, last=20063, purpose=1)
    return [
        PAP(type=0, transaction=rng.getrandbits(64), attributes=[_host_id(rng), PAPWant(count=1, purpose=3)]),
        PAP(type=0, transaction=rng.getrandbits(64), attributes=[_host_id(rng), PAPResume()]),
        PAP(type=0, transaction=rng.getrandbits(64), attributes=[_host_id(rng), lease]),
        PAP(type=3, transaction=rng.getrandbits(64), attributes=[_host_id(rng), lease]),
        PAP(type=8, transaction=rng.getrandbits(64), attributes=[_host_id(rng)]),
    ]


def _answers(rng: random.Random) -> list[Packet]:
    """Well-formed messages of servers, which nobody asked for and which are about other leases."""
    lease = PAPLease(id=rng.getrandbits(64) | 1, address=EXTERNAL, first=20000, last=20063, purpose=1, lifetime=60)
    return [
        PAP(type=1, epoch=7, transaction=rng.getrandbits(64), attributes=[_host_id(rng), lease]),
        PAP(type=2, epoch=7, result=64, transaction=rng.getrandbits(64), attributes=[_host_id(rng), lease]),
        PAP(type=8, epoch=7, transaction=rng.getrandbits(64), attributes=[_host_id(rng), PAPReason(text=b"why")]),
    ]


def _mutated(rng: random.Random, message: Packet) -> bytes:
    """A message with some octets changed, cut off, or put in."""
    octets = bytearray(bytes(message))
    for _ in range(rng.randint(1, 4)):
        octets[rng.randrange(len(octets))] = rng.randrange(256)
    match rng.randrange(4):
        case 0:
            del octets[rng.randrange(len(octets)) :]
        case 1:
            octets[rng.randrange(len(octets)) : 0] = rng.randbytes(rng.randrange(64))
        case 2:
            # An honest length, so that more than the header is looked at.
            octets[4:6] = len(octets).to_bytes(2)
        case _:
            pass
    return bytes(octets)


def _hostile(rng: random.Random, honest: list[Packet]) -> Iterator[bytes]:
    """Noise of every size, and mutations of honest messages."""
    yield b""
    for _ in range(200):
        yield rng.randbytes(rng.choice((1, 7, 8, 19, 20, 64, 1200, 1201, 1472)))
    for message in honest:
        for _ in range(60):
            yield _mutated(rng, message)


def _batches(datagrams: Iterator[bytes]) -> Iterator[list[bytes]]:
    while batch := list(itertools.islice(datagrams, BATCH)):
        yield batch


def _counted(machine: Machine, side: str) -> int:
    return sum(machine.show()["pap"][side].values())


def test_the_server(up: Small) -> None:
    """Every datagram is counted once; afterwards hosts are served as before."""
    rng = random.Random(1)
    pid, expected, leases = up.server.pid(), _counted(up.server, "server"), up.host.leases()
    with up.other.socket(socket.SOCK_DGRAM, 5729) as sock:
        for batch in _batches(_hostile(rng, _questions(rng))):
            for datagram in batch:
                sock.sendto(datagram, (up.server.address, SERVER_PORT))
            expected += len(batch)
            eventually(lambda want=expected: _counted(up.server, "server") == want, "every datagram is counted")
    assert up.server.pid() == pid
    assert up.server.show()["pap"]["server"]["malformed"] > 200
    known = up.server.leases()
    assert [lease for lease in leases if lease | {"host": up.host.address} not in known] == []
    for one, other in itertools.combinations(known, 2):
        same = one["protocol"] == other["protocol"] or "any" in (one["protocol"], other["protocol"])
        assert not same or one["last"] < other["first"] or other["last"] < one["first"]
    up.other.dnatctl("up")


def test_the_host(up: Small) -> None:
    """From the server's own address and port; anybody else is not even listened to."""
    rng = random.Random(2)
    pid, leases = up.host.pid(), up.host.leases()
    with up.other.socket(socket.SOCK_DGRAM) as stranger:
        for datagram in itertools.islice(_hostile(rng, _answers(rng)), BATCH):
            stranger.sendto(datagram, (up.host.address, AGENT_PORT))
    eventually(lambda: up.host.show()["pap"]["agent"].get("not-from-server") == BATCH, "strangers are counted")
    with netns.enter(up.server.namespace):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw as sock:
        for batch in _batches(_hostile(rng, _answers(rng))):
            before = _counted(up.host, "agent")
            for datagram in batch:
                packet = IP(src=up.server.address, dst=up.host.address) / UDP(sport=SERVER_PORT, dport=AGENT_PORT)
                sock.sendto(bytes(packet / datagram), (up.host.address, 0))
            eventually(lambda before=before: _counted(up.host, "agent") > before, "they are counted")
    assert up.host.show()["pap"]["agent"]["malformed"] > 150
    assert up.host.pid() == pid
    assert up.host.leases() == leases
    up.host.request("--ports", "2")


def test_the_local_api(up: Small) -> None:
    """Anybody can reach the socket: nonsense gets an answer or a closed connection, and others are served on."""
    rng = random.Random(3)
    pid = up.host.pid()
    lines = [b"\n", b"[]\n", b"{}\n", b'{"method": 1}\n', b'{"method": "show", "parameters": {"x": 1}}\n']
    lines += [rng.randbytes(rng.randrange(1, 300)) + b"\n" for _ in range(50)]
    lines += [b"x" * 100_000 + b"\n", b'{"method": "request", "parameters": {"count": "many"}}\n']
    lines += [b'{"method": "request", "parameters": {"count": -1}}\n', b'{"method": "release", "parameters": {}}\n']
    lines += [b'{"method": "request", "parameters": {"protocol": 6}}\n', b"[" * 60_000 + b"\n"]
    lines += [b'{"method": "request", "parameters": {"protocol": "sctp"}}\n']
    for line in lines:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(up.host.runtime / "api.sock"))
            try:
                client.sendall(line)
                client.shutdown(socket.SHUT_WR)
                answer = client.recv(10000)
            except ConnectionError:
                answer = b""
            assert answer == b"" or b'"error"' in answer or b'"released": []' in answer, line[:80]
            assert b"internal" not in answer, line[:80]
    assert up.host.pid() == pid
    up.host.dnatctl("status")
