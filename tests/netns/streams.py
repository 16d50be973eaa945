"""Numbered datagrams both ways, as steady as a call: which of them got lost."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

INTERVAL = 0.005
"""Seconds between two datagrams of one direction: four times as many as a call has."""
DRAIN = 3.0
"""Seconds to wait for what is still on its way at the end."""


@dataclass
class _End:
    sock: socket.socket
    sent: int = 0
    received: set[int] = field(default_factory=set)


class Streams:
    """Runs while the context is open. Takes pairs of connected UDP sockets that reach each other."""

    def __init__(self, pairs: Iterable[tuple[socket.socket, socket.socket]]) -> None:
        self._pairs = [(_End(one), _End(other)) for one, other in pairs]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Streams:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def sent(self) -> int:
        """Datagrams sent so far in the direction that has sent least."""
        return min(end.sent for pair in self._pairs for end in pair)

    @property
    def received(self) -> int:
        """Datagrams received so far in the direction that has received least."""
        return min(len(end.received) for pair in self._pairs for end in pair)

    def lost(self) -> list[str]:
        """Each datagram that never came, once the context is closed."""
        return [
            f"{sender.sock.getsockname()} → {sender.sock.getpeername()}: datagram {number} of {sender.sent}"
            for pair in self._pairs
            for sender, receiver in (pair, pair[::-1])
            for number in sorted(set(range(sender.sent)) - receiver.received)
        ]

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for pair in self._pairs:
                for end in pair:
                    end.sock.setblocking(False)
                    selector.register(end.sock, selectors.EVENT_READ, end)
            due = time.monotonic()
            while not self._end.is_set():
                if time.monotonic() >= due:
                    due += INTERVAL
                    for pair in self._pairs:
                        for end in pair:
                            end.sock.send(struct.pack("!I", end.sent))
                            end.sent += 1
                self._receive(selector, max(0.0, due - time.monotonic()))
            deadline = time.monotonic() + DRAIN
            while self.received < self.sent and time.monotonic() < deadline:
                self._receive(selector, 0.05)

    @staticmethod
    def _receive(selector: selectors.BaseSelector, seconds: float) -> None:
        for key, _ in selector.select(seconds):
            end: _End = key.data
            end.received.update(struct.unpack("!I", end.sock.recv(100)))
