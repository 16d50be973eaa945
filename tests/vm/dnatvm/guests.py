"""Guests that make a lab: one for each node, on a LAN and a WAN of datagram sockets."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dnat.lab.machines import network_commands
from dnat.lab.topology import Node, Topology
from dnatvm.images import Kernel
from dnatvm.machine import Guest, Nic, agent_files, job_archive


class Hub:
    """A LAN: what comes out of one card goes into all others. A thread of its own, from start to close."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ends: dict[socket.socket, Path] = {}
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)

    def cable(self, name: str, mac: str) -> Nic:
        """A card that is plugged in here."""
        near, far = self._directory / f"{name}.hub", self._directory / f"{name}.nic"
        end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        end.bind(str(near))
        end.setblocking(False)
        self._ends[end] = far
        return Nic(mac, far, near)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.close()
        if self._thread.is_alive():
            self._thread.join()
        for end in (*self._ends, self._stopped):
            end.close()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([*self._ends, self._stopped], [], [])
            if self._stopped in ready:
                return
            for end in ready:
                with contextlib.suppress(BlockingIOError):
                    frame = end.recv(1 << 17)
                    for other, path in self._ends.items():
                        if other is not end:
                            # A cable whose far end is not there, or does not keep up, loses what is sent.
                            with contextlib.suppress(OSError):
                                other.sendto(frame, str(path))


class Guests:
    """Start boots them all and gives each its network as the topology has it."""

    def __init__(
        self,
        topology: Topology,
        names: Sequence[str],
        kernel: Kernel,
        disk: Path,
        files: Mapping[str, bytes],
        directory: Path,
    ) -> None:
        self._nodes = [topology.node(name) for name in names]
        self._hubs = {segment: Hub(directory) for segment in ("lan", "wan")}
        job = job_archive(agent_files() | dict(files), {})
        self._guests = {}
        for number, node in enumerate(self._nodes, 1):
            nics = [
                self._hubs[port.segment].cable(f"{node.name}{card}", f"52:54:00:66:{number:02x}:{card:02x}")
                for card, port in enumerate(node.ports)
            ]
            self._guests[node.name] = Guest(node.name, kernel, disk, job, directory, nics=nics, systemd=True)

    def __getitem__(self, name: str) -> Guest:
        return self._guests[name]

    def start(self) -> None:
        """Raises GuestError, also when one of them does not come up."""
        for hub in self._hubs.values():
            hub.start()
        with ThreadPoolExecutor(len(self._guests)) as pool:
            list(pool.map(Guest.__enter__, self._guests.values()))
            list(pool.map(self._configure, self._nodes))

    def stop(self) -> None:
        with ThreadPoolExecutor(len(self._guests)) as pool:
            list(pool.map(Guest.__exit__, self._guests.values()))
        for hub in self._hubs.values():
            hub.close()

    def _configure(self, node: Node) -> None:
        commands = [f"hostname {node.name}", "sysctl -qw net.ipv6.conf.all.disable_ipv6=1"]
        commands += network_commands(node, [f"eth{card}" for card in range(len(node.ports))])
        self._guests[node.name].run("sh", "-e", "-c", "\n".join(commands))
