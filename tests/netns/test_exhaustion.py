"""The pool of ports to translate to: it grows before it is empty, shrinks when idle, and says when there is no more."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import Lab, Node, eventually

from dnat.dataplane.abi import PortClass

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
ECHO = 7
PATIENCE = 20.0


def speak(sock: socket.socket, lab: Lab) -> None:
    sock.sendto(b"?", (lab.ext, ECHO))
    try:
        assert sock.recv(10) == b"?"
    except TimeoutError:
        shown = {name: lab[name].call("show")["counters"] for name in ("phone1", "router")}
        pytest.fail(f"no answer to {sock.getsockname()}: {shown}")


def await_a_free_port(phone: Node) -> None:
    with contextlib.closing(phone.plane()) as plane:
        eventually(lambda: plane.free_ports()[PortClass.UDP], "another block", PATIENCE)


def test_it_grows_before_a_packet_is_lost_and_shrinks_when_idle(routed_lab: Lab, tmp_path: Path) -> None:
    lab = routed_lab
    limits = "translated_ports = 8\ntranslated_ports_max = 64\ngive_back_after = 1"
    with lab["phone1"].configured(limits, tmp_path) as phone, contextlib.ExitStack() as sockets:
        opened = []
        for number in range(16):
            opened.append(sockets.enter_context(phone.socket(UDP, 7000 + number)))
            speak(opened[-1], lab)
            await_a_free_port(phone)
        for sock in opened:
            speak(sock, lab)
        counters = phone.show()["counters"]
        assert counters["drop_pool_exhausted"] == 0
        assert counters["host_pool_low"] > 0
        # As if nothing had been sent for longer than a binding lives; then the blocks are no longer needed.
        with contextlib.closing(phone.plane()) as plane:
            assert plane.sweep(time.monotonic() + 400) == 16
        eventually(lambda: sum(phone.blocks("translated")) == 8, "the surplus is given back", PATIENCE)
        for sock in opened[:4]:
            speak(sock, lab)


def test_a_live_binding_keeps_its_block(routed_lab: Lab, tmp_path: Path) -> None:
    lab, limits = routed_lab, "translated_ports = 4\ngive_back_after = 1"
    with lab["phone1"].configured(limits, tmp_path) as phone, contextlib.ExitStack() as sockets:
        opened = [sockets.enter_context(phone.socket(UDP, 7000 + number)) for number in range(6)]
        for sock in opened:
            speak(sock, lab)
            await_a_free_port(phone)
        before = {b["local_port"]: b["port"] for b in phone.call("show")["bindings"]}
        # All but one expire, as if their time had passed.
        with contextlib.closing(phone.plane()) as plane:
            for found in plane.bindings(time.monotonic()):
                assert found.local_port == 7005 or plane.forget(found)
        eventually(lambda: len(phone.blocks("translated")) <= 2, "idle blocks are given back", PATIENCE)
        speak(opened[-1], lab)
        after = {b["local_port"]: b["port"] for b in phone.call("show")["bindings"]}
        assert after == {7005: before[7005]}


@pytest.fixture
def exhausted(routed_lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    """A phone whose four ports are taken, by UDP, TCP and all; ``request.param``: what it then does."""
    lab = routed_lab
    table = f'translated_ports = 4\ntranslated_ports_max = 4\nexhausted = "{request.param}"'
    with lab["phone1"].configured(table, tmp_path) as phone, contextlib.ExitStack() as stack:
        for number in range(4):
            speak(stack.enter_context(phone.socket(UDP, 7000 + number)), lab)
            sock = stack.enter_context(phone.socket(TCP, 7000 + number))
            sock.connect((lab.ext, 80))
        # The daemon has to learn that it cannot have more.
        with contextlib.closing(phone.plane()) as plane:
            eventually(lambda: plane.exhausted, "known to be exhausted", PATIENCE)
        yield phone


@pytest.mark.parametrize("exhausted", ["icmp"], indirect=True)
def test_when_there_are_no_more_ports_programs_are_told(exhausted: Node, routed_lab: Lab) -> None:
    with exhausted.socket(UDP, 7100) as sock:
        sock.connect((routed_lab.ext, ECHO))
        sock.send(b"?")
        with pytest.raises(OSError) as refusal:
            sock.recv(10)
        assert refusal.value.errno == errno.EHOSTUNREACH
    with exhausted.socket(TCP, 7101) as sock:
        sock.settimeout(10)
        began = time.monotonic()
        with pytest.raises(OSError) as refusal:
            sock.connect((routed_lab.ext, 80))
        assert refusal.value.errno == errno.EHOSTUNREACH
        assert time.monotonic() - began < 5
    counters = exhausted.show()["counters"]
    assert counters["host_refused"] >= 2
    assert counters["drop_pool_exhausted"] == counters["host_refused"]


@pytest.mark.parametrize("exhausted", ["drop"], indirect=True)
def test_or_not_if_so_configured(exhausted: Node, routed_lab: Lab) -> None:
    with exhausted.socket(UDP, 7100) as sock:
        sock.settimeout(0.5)
        sock.connect((routed_lab.ext, ECHO))
        sock.send(b"?")
        with pytest.raises(TimeoutError):
            sock.recv(10)
    counters = exhausted.show()["counters"]
    assert (counters["host_refused"], counters["drop_pool_exhausted"] > 0) == (0, True)


def test_a_raw_socket_of_a_protocol_that_cannot_be_translated_is_told(routed_lab: Lab) -> None:
    """SCTP from a port that is not leased; the raw socket stands for a stack of its own."""
    phone = routed_lab["phone1"]
    sctp, ip_recverr = 132, 11
    before = phone.counter("host_refused")
    script = (
        "import socket, errno, sys\n"
        f"raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, {sctp})\n"
        f"raw.setsockopt(socket.IPPROTO_IP, {ip_recverr}, 1)\n"
        f"raw.connect(('{routed_lab.ext}', 0)); raw.settimeout(20)\n"
        "raw.send((4000).to_bytes(2, 'big') + bytes(30))\n"
        "try: raw.recv(100)\n"
        "except OSError as error: print(errno.errorcode[error.errno])\n"
    )
    assert phone.run("/usr/bin/python3", "-c", script).stdout.strip() == "EHOSTUNREACH"
    assert phone.counter("host_refused") == before + 1
