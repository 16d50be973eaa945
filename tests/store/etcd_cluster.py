"""A real etcd cluster of three members on the loopback, whose members tests kill and start again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from aetcd import rpc

from dnat.lab.etcd import command, launch, on_the_loopback
from dnat.store import StoreError
from dnat.store.etcd.client import Cluster, EtcdClient

SECONDS = 60.0
"""How long a cluster may take to come up on a busy machine."""


class EtcdCluster:
    """Processes of this test run, by number."""

    def __init__(self, directory: Path, tls: Path | None = None) -> None:
        """``tls``: a single member instead of three, with the certificates of this directory."""
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._tls = tls
        self.members = on_the_loopback(1 if tls else 3)

    def start(self, *numbers: int) -> None:
        for number in numbers or range(3):
            argv = command(self.members[number], self.members, self._directory / f"m{number}", self._directory.name)
            if self._tls is not None:
                files = {"trusted-ca-file": "ca.pem", "cert-file": "dnat.pem", "key-file": "dnat.key"}
                argv = [each.replace("client-urls=http:", "client-urls=https:") for each in argv]
                argv += ["--client-cert-auth", *(f"--{name}={self._tls / file}" for name, file in files.items())]
            self._running[number] = launch(argv, self._directory / f"m{number}.log")

    def kill(self, *numbers: int) -> None:
        """As a power failure does."""
        for number in numbers or tuple(self._running):
            process = self._running.pop(number)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

    def wipe(self) -> None:
        """Lose everything, while no member runs."""
        for number in range(3):
            shutil.rmtree(self._directory / f"m{number}")

    def wait(self, cluster: Cluster | None = None) -> None:
        """Until the cluster serves."""
        deadline = time.monotonic() + SECONDS
        while not asyncio.run(_serves(cluster or self.cluster("/"))):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def cluster(self, prefix: str, members: Sequence[int] = (0, 1, 2)) -> Cluster:
        return Cluster(tuple(self.members[number].endpoint for number in members), prefix)

    def log(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self._directory.glob("*.log")))

    async def find_leader(self) -> int:
        """The number of the member that leads."""
        for number in self._running:
            async with rpc.insecure_channel(self.members[number].endpoint) as channel:
                status = await rpc.MaintenanceStub(channel).Status(rpc.StatusRequest(), timeout=10)
                if status.header.member_id == status.leader:
                    return number
        raise AssertionError("nobody leads")


async def _serves(cluster: Cluster) -> bool:
    client = EtcdClient(cluster)
    try:
        await client.get(b"nothing", 1.0)
    except StoreError:
        return False
    finally:
        await client.close()
    return True
