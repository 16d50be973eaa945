"""Mapping and filtering as a STUN server with two addresses and its own client see them (RFC 5780)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import wire
from nodes import Lab, Node, eventually
from wire import DATAGRAM, local_port

from dnat.lab import control
from dnat.system import netns
from dnat.types import Protocol

STUN = 3478


@pytest.fixture(scope="module")
def server(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """coturn at both addresses of the outside; gives the first."""
    directory: Path = tmp_path_factory.mktemp("coturn")
    command = ["turnserver", "-n", "--stun-only", "--no-tls", "--no-dtls", "--no-cli", "--no-auth", "--simple-log"]
    command += ["--log-file", str(directory / "log"), "--pidfile", str(directory / "pid")]
    command += ["--userdb", str(directory / "users")]
    for address in (lab.ext, wire.second_address(lab)):
        command += ["--listening-ip", address]
    with netns.enter(lab["ext"].namespace):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: _answers(lab), "the server answers", seconds=20)
        yield lab.ext
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(lab: Lab) -> bool:
    """To a binding request, at both addresses and both ports."""
    request = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12)
    with lab["ext"].socket(DATAGRAM) as sock:
        sock.settimeout(0.2)
        for address in (lab.ext, wire.second_address(lab)):
            for port in (STUN, STUN + 1):
                try:
                    sock.sendto(request, (address, port))
                    sock.recv(1000)
                except OSError:
                    return False
    return True


def discover(phone: Node, option: str, server: str, address: str, local: int) -> str:
    """What the client says."""
    command = ["turnutils_natdiscovery", option, "-L", address, "-l", str(local), server]
    done = control.run(phone.topology, phone.name, command, timeout=60)
    return done.stdout + done.stderr


def places(phone: Node) -> dict[str, int]:
    """A native port, and one that has to be translated."""
    return {"native": min(wire.own_ports(phone, "ephemeral")), "translated": local_port()}


@pytest.mark.parametrize("way", ["native", "translated"])
def test_mapping(lab: Lab, phone: Node, server: str, way: str) -> None:
    local = places(phone)[way]
    said = discover(phone, "-m", server, lab.external, local)
    found = "No NAT! (Endpoint Independent Mapping)" if way == "native" else "NAT with Endpoint Independent Mapping!"
    assert found in said, said
    assert ("No NAT!" in said) == (way == "native")
    _same_port(lab, phone, said, way, local)


@pytest.mark.parametrize("way", ["native", "translated"])
def test_filtering(lab: Lab, phone: Node, server: str, way: str) -> None:
    local = places(phone)[way]
    said = discover(phone, "-f", server, lab.external, local)
    assert "Endpoint Independent Filtering" in said, said
    _same_port(lab, phone, said, way, local)


def test_filtering_by_address(lab: Lab, strict: Node, server: str) -> None:
    said = discover(strict, "-f", server, lab.external, local_port())
    assert "Address Dependent Filtering" in said, said


def _same_port(lab: Lab, phone: Node, said: str, way: str, local: int) -> None:
    """What the server saw is what the host's map says."""
    port = local if way == "native" else wire.bound(phone, Protocol.UDP, local).port
    assert f"{lab.external}:{port}" in said
