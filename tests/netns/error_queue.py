"""What the kernel tells a socket of ICMP errors about its packets (ip(7), IP_RECVERR)."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

from nodes import SILENCE, eventually

_IP_RECVERR, _MSG_ERRQUEUE = 11, 0x2000


@dataclass(frozen=True)
class Told:
    """One error: from whom, and of what kind."""

    by: str
    type: int
    code: int


def listen_for_errors(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


def told_now(sock: socket.socket) -> Told | None:
    patience = sock.gettimeout()
    sock.setblocking(False)
    try:
        _, ancillary, _, _ = sock.recvmsg(2000, 512, _MSG_ERRQUEUE)
    except BlockingIOError:
        return None
    finally:
        sock.settimeout(patience)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_RECVERR):
            _, _, icmp_type, icmp_code = struct.unpack_from("=IBBB", data)
            return Told(socket.inet_ntoa(data[20:24]), icmp_type, icmp_code)
    return None


def told(sock: socket.socket) -> Told:
    found = eventually(lambda: told_now(sock), "the socket is told")
    assert isinstance(found, Told)
    return found


def is_not_told(sock: socket.socket) -> bool:
    deadline = time.monotonic() + SILENCE
    while time.monotonic() < deadline:
        if told_now(sock):
            return False
        time.sleep(0.05)
    return True
