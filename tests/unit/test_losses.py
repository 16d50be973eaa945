"""What becomes of the programs whose ports were taken back: found out from real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dnat.daemon.losses import KEPT, Losses
from dnat.system import holders
from dnat.types import Lease, PortRange, Protocol, Purpose

ADDRESS = IPv4Address("198.51.100.1")


@pytest.fixture
def port() -> Iterator[int]:
    """A UDP port that this process has open."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_sockets_of_both_families_are_found(family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind(("", 0))
        sock.listen()
        port = sock.getsockname()[1]
        (program,) = holders.of(PortRange(port, port), Protocol.TCP)
    assert program.ports == (port,)


def lease(port: int, purpose: Purpose = Purpose.EXPLICIT, protocol: Protocol = Protocol.ANY) -> Lease:
    return Lease(1, ADDRESS, PortRange(port, port), protocol, purpose, 0.0)


def test_the_program_that_has_a_port_open_is_found(port: int) -> None:
    (program,) = holders.of(PortRange(port, port), Protocol.ANY)
    assert (program.pid, program.ports) == (os.getpid(), (port,))
    assert program.name == Path("/proc/self/comm").read_text().strip()
    assert holders.of(PortRange(port, port), Protocol.TCP) == ()


def test_calls_end_with_their_ports(port: int) -> None:
    losses = Losses(lambda: ())
    losses.note(lease(port), "why not")
    losses.settle(())
    (told,) = losses.describe()
    assert (told["outcome"], told["reason"], told["first"]) == ("ends", "why not", port)
    assert [each["pid"] for each in told["programs"]] == [os.getpid()]


def test_ports_that_nobody_uses(port: int) -> None:
    losses = Losses(lambda: (port,))
    losses.note(lease(port, protocol=Protocol.TCP), "")
    losses.note(lease(1, Purpose.TRANSLATED), "")
    assert [told["outcome"] for told in losses.describe()] == ["unused", "unused"]


def test_what_was_translated_moves(port: int) -> None:
    losses = Losses(lambda: (port,))
    losses.note(lease(port, Purpose.TRANSLATED), "")
    losses.settle([lease(port + 1, Purpose.TRANSLATED)])
    losses.settle([lease(port, Purpose.TRANSLATED)])
    assert losses.describe()[0]["outcome"] == "moves", "later leases change nothing"


def test_ports_that_come_back_at_once_keep_all(port: int) -> None:
    losses = Losses(lambda: ())
    for _ in range(KEPT + 5):
        losses.note(lease(port), "")
    losses.settle([lease(port)])
    assert [told["outcome"] for told in losses.describe()] == ["kept"] * KEPT
