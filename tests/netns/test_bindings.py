"""Bindings as the outside sees them: who gets in, who gets an answer, and what an operator mapped."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import SILENCE, Lab, Node, eventually

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
ECHO = 7


def seen(phone: Node, protocol: str, local_port: int) -> int:
    """The port outside of a local one."""
    (port,) = (
        found["port"]
        for found in phone.call("show")["bindings"]
        if (found["protocol"], found["local_port"]) == (protocol, local_port)
    )
    return int(port)


def is_heard(receiver: socket.socket, sender: socket.socket, target: tuple[str, int]) -> bool:
    sender.sendto(b"knock", target)
    receiver.settimeout(SILENCE)
    try:
        return receiver.recvfrom(100)[0] == b"knock"
    except TimeoutError:
        return False


@pytest.mark.parametrize("filtering", ["endpoint-independent", "address-dependent"])
def test_who_may_send_to_a_translated_port(routed_lab: Lab, tmp_path: Path, filtering: str) -> None:
    """RFC 4787, section 5."""
    lab = routed_lab
    second_address = "203.0.113.77"
    lab["ext"].run("ip", "addr", "replace", f"{second_address}/24", "dev", "eth0")
    with lab["phone1"].configured(f'filtering = "{filtering}"', tmp_path) as phone, phone.socket(UDP, 4200) as inside:
        inside.sendto(b"?", (lab.ext, ECHO))
        inside.recv(10)
        target = (lab.external, seen(phone, "udp", 4200))
        with lab["ext"].socket(UDP) as known, lab["ext"].socket(UDP, 0, second_address) as stranger:
            assert is_heard(inside, known, target), "another port of an address that was sent to"
            assert is_heard(inside, stranger, target) == (filtering == "endpoint-independent")
            inside.sendto(b"hello", stranger.getsockname())
            assert is_heard(inside, stranger, target)


def test_simultaneous_open(lab: Lab) -> None:
    """RFC 5382, REQ-2: the outside's first SYN comes too early and finds silence; ours crosses its next one."""
    phone, ext = lab["phone1"], lab["ext"]
    pool = phone.ports("translated")
    # What earlier tests opened is still bound, and what comes for it is for them.
    bound = {binding["port"] for binding in phone.show()["bindings"]}
    port = next(port for port in range(pool.first, pool.last + 1) if port not in bound)
    before = phone.counter("drop_unbound")
    with phone.socket(TCP, port) as inside, ext.socket(TCP, 5555) as outside:
        calling = threading.Thread(target=outside.connect, args=((lab.external, port),))
        calling.start()
        eventually(lambda: phone.call("show")["counters"]["drop_unbound"] > before, "the first SYN arrived")
        inside.connect((lab.ext, 5555))
        calling.join()
        inside.sendall(b"well met")
        assert outside.recv(100) == b"well met"
    assert seen(phone, "tcp", port) == port, "a port of the pool, used by its number, is seen as it is"


def test_an_unsolicited_syn_gets_no_answer(routed_lab: Lab) -> None:
    """RFC 5382, REQ-4: for at least six seconds."""
    lab = routed_lab
    phone = lab["phone1"]
    port = phone.ports("translated").last
    script = (
        "from scapy.all import *\n"
        f"syn = IP(dst='{lab.external}') / TCP(sport=5556, dport={port}, flags='S')\n"
        "print(sr1(syn, timeout=6.5, verbose=0, filter=None))\n"
    )
    before = phone.counter("drop_unbound")
    # Its own stack would reset what it does not know, and spoil nothing here: nothing comes.
    assert lab["ext"].run(sys.executable, "-c", script).stdout.strip() == "None"
    assert phone.counter("drop_unbound") == before + 1


@pytest.fixture
def mapped(routed_lab: Lab) -> Iterator[int]:
    """TCP port 8080 of phone1 mapped; gives the port outside."""
    phone = routed_lab["phone1"]
    phone.dnatctl("map", "tcp", "8080")
    yield seen(phone, "tcp", 8080)
    phone.dnatctl("unmap", "tcp", "8080")
    assert not [lease for lease in phone.show()["leases"] if lease["purpose"] == "explicit"]
    assert not [binding for binding in phone.show()["bindings"] if binding["static"]]


def answers(lab: Lab, port: int) -> bool:
    """Whether the outside reaches a server at port 8080 of phone1."""
    with lab["phone1"].socket(TCP, 8080, listen=True) as server, lab["ext"].socket(TCP) as client:
        server.settimeout(SILENCE)
        client.settimeout(SILENCE)
        try:
            client.connect((lab.external, port))
        except OSError:
            return False
        accepted, source = server.accept()
        with accepted:
            accepted.sendall(b"well")
            return source[0] == lab.ext and client.recv(10) == b"well"


def test_a_mapped_port_is_reached_from_outside(routed_lab: Lab, mapped: int) -> None:
    assert answers(routed_lab, mapped)
    assert "static" in routed_lab["phone1"].dnatctl("show", "bindings").stdout


def test_a_mapping_outlives_the_daemon(routed_lab: Lab, mapped: int) -> None:
    phone = routed_lab["phone1"]
    os.kill(phone.pid(), 9)
    assert answers(routed_lab, mapped)
    eventually(lambda: phone.run("true") and phone.dnatctl("status", code=None).returncode == 5, "the daemon is gone")
    phone.dnatctl("up")
    assert seen(phone, "tcp", 8080) == mapped
    assert answers(routed_lab, mapped)


def test_a_mapping_to_a_port_by_number(routed_lab: Lab) -> None:
    phone = routed_lab["phone2"]
    phone.dnatctl("map", "udp", "5060", "--port", "5070")
    try:
        with phone.socket(UDP, 5060) as inside, routed_lab["ext"].socket(UDP) as outside:
            assert is_heard(inside, outside, (routed_lab.external, 5070))
            inside.sendto(b"well", (routed_lab.ext, outside.getsockname()[1]))
            assert outside.recvfrom(100) == (b"well", (routed_lab.external, 5070))
        assert "mapped" in phone.dnatctl("release", "5070", code=2).stderr
        assert "unmap it first" in phone.dnatctl("map", "udp", "5060", "--port", "5071", code=2).stderr
        assert "mapped already" in phone.dnatctl("map", "udp", "5061", "--port", "5070", code=2).stderr
        assert (
            "another host has it" in routed_lab["phone1"].dnatctl("map", "udp", "5060", "--port", "5070", code=3).stderr
        )
    finally:
        phone.dnatctl("unmap", "udp", "5060")
    assert "not mapped" in phone.dnatctl("unmap", "udp", "5060", code=2).stderr


def test_a_port_of_an_explicit_lease_is_mapped_and_stays_leased(routed_lab: Lab) -> None:
    phone = routed_lab["phone2"]
    first = phone.request("--ports", "3")["first"]
    try:
        phone.dnatctl("map", "udp", "5090", "--port", str(first + 1))
        with phone.socket(UDP, 5090) as mapped, routed_lab["ext"].socket(UDP) as outside:
            assert is_heard(mapped, outside, (routed_lab.external, first + 1))
        for port in (first, first + 2):
            with phone.socket(UDP, port) as native, routed_lab["ext"].socket(UDP) as outside:
                assert is_heard(native, outside, (routed_lab.external, port))
        with phone.socket(TCP, first + 1, listen=True), routed_lab["ext"].socket(TCP) as caller:
            caller.connect((routed_lab.external, first + 1))
        phone.dnatctl("unmap", "udp", "5090")
        with phone.socket(UDP, first + 1) as native, routed_lab["ext"].socket(UDP) as outside:
            assert is_heard(native, outside, (routed_lab.external, first + 1))
    finally:
        phone.dnatctl("release", str(first))


def test_an_own_port_needs_no_mapping(routed_lab: Lab) -> None:
    phone = routed_lab["phone2"]
    port = phone.ports("ephemeral").first
    assert "needs" not in phone.dnatctl("map", "tcp", str(port), code=2).stdout
