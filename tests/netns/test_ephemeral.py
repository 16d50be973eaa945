"""The ports that the kernel picks: more before they are all in use, fewer when idle."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from nodes import SECONDS, Lab, Node, eventually

from dnat.system import netns

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
ECHO, HTTP = 7, 80
PATIENCE = 20.0


def picked_from(phone: Node) -> range:
    first, last = phone.run("sysctl", "-n", "net.ipv4.ip_local_port_range").stdout.split()
    return range(int(first), int(last) + 1)


def connected(phone: Node, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    """A socket whose port the kernel picked, for itself alone."""
    with netns.enter(phone.namespace):
        opened = socket.socket(socket.AF_INET, kind)
    opened.settimeout(SECONDS)
    opened.connect((address, port))
    return opened


def await_room(phone: Node, used: Callable[[], set[int]]) -> None:
    """Wait for a block of which at least a quarter is free."""

    def roomy() -> bool:
        ports = picked_from(phone)
        return 4 * len(used() & set(ports)) <= 3 * len(ports)

    eventually(roomy, "another block", PATIENCE)


def connections(phone: Node) -> set[int]:
    """Local ports of TCP, of those too that only wait."""
    lines = phone.run("ss", "-Htan").stdout.splitlines()
    return {int(line.split()[3].rpartition(":")[2]) for line in lines}


def speak(sock: socket.socket, text: bytes = b"?") -> None:
    sock.send(text)
    assert sock.recv(10) == text


def test_a_host_with_many_sockets_gets_more_ports(routed_lab: Lab, tmp_path: Path) -> None:
    lab = routed_lab
    limits = "ephemeral_ports = 8\nephemeral_ports_max = 64\ngive_back_after = 1"
    with lab["phone1"].configured(limits, tmp_path) as phone:
        assert len(picked_from(phone)) == 8
        with contextlib.ExitStack() as sockets:
            opened = []
            for _ in range(40):
                opened.append(sockets.enter_context(connected(phone, UDP, lab.ext, ECHO)))
                speak(opened[-1])
                await_room(phone, lambda: {sock.getsockname()[1] for sock in opened})
            # Those which speak from former blocks go on.
            for sock in opened:
                speak(sock)
            assert len({sock.getsockname()[1] for sock in opened}) == 40
            assert len(phone.blocks("ephemeral")) > 1
        eventually(
            lambda: phone.blocks("ephemeral") == [8], "all but a block of the first size is given back", PATIENCE
        )
        with connected(phone, UDP, lab.ext, ECHO) as sock:
            speak(sock)


def test_connections_to_one_place_count_while_they_wait(routed_lab: Lab, tmp_path: Path) -> None:
    lab, limits = routed_lab, "ephemeral_ports = 8\nephemeral_ports_max = 64\ngive_back_after = 1"
    with lab["phone1"].configured(limits, tmp_path) as phone:
        for _ in range(20):
            # What this side closes keeps its port from the same destination for a minute (but for a late RST).
            connected(phone, TCP, lab.ext, HTTP).close()
            await_room(phone, lambda: connections(phone))
        assert len(picked_from(phone)) > 8
