"""Octets over a connection, in one direction, until all are there."""

from __future__ import annotations

import socket
import threading


def transfer(source: socket.socket, sink: socket.socket, octets: bytes) -> None:
    """Carry octets over a connection, and compare what comes."""
    sending = threading.Thread(target=source.sendall, args=(octets,))
    sending.start()
    received = b""
    while len(received) < len(octets):
        received += sink.recv(1 << 20)
    sending.join()
    assert received == octets
