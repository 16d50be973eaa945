"""A new version takes over the data plane while packets flow: nothing is lost, and bindings stay."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from inside import versions
from nodes import Lab, eventually

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
ECHO = 7
INTERVAL = 0.004
"""Seconds between two datagrams of a stream."""


class Stream:
    """Datagrams to an echo server, numbered."""

    def __init__(self, sock: socket.socket, target: tuple[str, int]) -> None:
        self._sock = sock
        self._target = target
        self._running = threading.Event()
        self.sent = 0
        self.received: set[int] = set()

    def send(self) -> None:
        while not self._running.wait(INTERVAL):
            self._sock.sendto(self.sent.to_bytes(4), self._target)
            self.sent += 1

    def receive(self) -> None:
        while not self._running.is_set() or len(self.received) < self.sent:
            try:
                self.received.add(int.from_bytes(self._sock.recv(100)))
            except TimeoutError:
                return

    @contextmanager
    def flowing(self) -> Iterator[None]:
        threads = [threading.Thread(target=each) for each in (self.send, self.receive)]
        for thread in threads:
            thread.start()
        yield
        self._running.set()
        for thread in threads:
            thread.join()


def test_an_upgrade_under_load_loses_nothing(routed_lab: Lab, next_version: dict[str, str]) -> None:
    lab, phone = routed_lab, routed_lab["phone1"]
    target = (lab.ext, ECHO)
    old = versions(phone.namespace, "eth0")
    with (
        phone.socket(UDP) as native,
        phone.socket(UDP, 4400) as translated,
        phone.socket(TCP, 4401) as client,
        lab["ext"].socket(TCP, 5557, listen=True) as listener,
    ):
        client.connect((lab.ext, 5557))
        server, _ = listener.accept()
        streams = [Stream(native, target), Stream(translated, target)]
        with server, streams[0].flowing(), streams[1].flowing():
            eventually(lambda: all(len(stream.received) > 50 for stream in streams), "traffic flows")
            bindings = {(b["protocol"], b["local_port"]): b["port"] for b in phone.call("show")["bindings"]}
            phone.replace(env=next_version)
            new = versions(phone.namespace, "eth0")
            phone.replace()
            after = time.monotonic()
            eventually(lambda: time.monotonic() > after + 0.2, "some more traffic")
            client.sendall(b"still there")
            assert server.recv(100) == b"still there"
    assert new.isdisjoint(old) and len(new) == len(old) == 2
    assert versions(phone.namespace, "eth0") == old
    for stream in streams:
        assert stream.sent > 100
        assert stream.received == set(range(stream.sent)), "not one was lost"
    now = {(b["protocol"], b["local_port"]): b["port"] for b in phone.call("show")["bindings"]}
    for key in (("udp", 4400), ("tcp", 4401)):
        assert now[key] == bindings[key]
