"""Sends a server as many questions as it can for some seconds. Runs on the flooder's machine, in a process of its own.

``python flood.py KIND SERVER KEY HOST-ID ADDRESS SECONDS``; KIND: ``forged`` (invented hosts without keys), ``guessed``
(the number of a key that there is, and a wrong tag) or ``true`` (the flooder's own). KEY: the flooder's key file, or
the number of anybody's.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path

from dnat import key_file
from dnat.pap.auth import Direction, Key, Stamper, seal
from dnat.pap.codec import encode
from dnat.pap.messages import AGENT_PORT, SERVER_PORT, Message, MessageType, Want
from dnat.types import Protocol, Purpose

WANT = Want(64, Protocol.ANY, Purpose.EPHEMERAL)


def main() -> None:
    kind, server, known, host_id, address, seconds = sys.argv[1:7]
    key = Key(int(known, 16), bytes(32)) if kind == "guessed" else None
    if kind == "true":
        key = key_file.load(Path(known))
    stamper, host = Stamper(time.time()), IPv4Address(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", AGENT_PORT + 1))
        sock.connect((server, SERVER_PORT))
        end = time.monotonic() + float(seconds)
        for number in itertools.count(int.from_bytes(os.urandom(6)) << 16):
            if time.monotonic() > end:
                break
            name = bytes.fromhex(host_id) if key else os.urandom(16)
            octets = encode(Message(MessageType.REQUEST, number, host_id=name, want=WANT))
            if key is not None:
                octets = seal(octets, key, Direction.FROM_AGENT, host, stamper.next(time.time()))
            try:
                sock.send(octets)
            except ConnectionError:
                pass


if __name__ == "__main__":
    main()
