"""How the members of an etcd cluster are started, in the lab and in tests: as plainly as those need, without TLS."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnat.errors import PlatformError

CLIENT_PORT = 2379
PEER_PORT = 2380


@dataclass(frozen=True, slots=True)
class Member:
    """One member."""

    name: str
    address: str
    port: int = CLIENT_PORT
    """For servers and routers."""
    peer_port: int = PEER_PORT
    """For the other members."""

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def peer(self) -> str:
        return f"http://{self.address}:{self.peer_port}"


def on_the_loopback(count: int = 3) -> list[Member]:
    """Members on this machine, at ports that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2 * count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    return [Member(f"m{n}", "127.0.0.1", ports[2 * n], ports[2 * n + 1]) for n in range(count)]


def command(member: Member, members: Sequence[Member], data: Path, token: str) -> list[str]:
    """The program that is the member, with its data in a directory; ``token`` is the cluster's name."""
    options = {
        "name": member.name,
        "data-dir": str(data),
        "listen-client-urls": f"http://{member.endpoint}",
        "advertise-client-urls": f"http://{member.endpoint}",
        "listen-peer-urls": member.peer,
        "initial-advertise-peer-urls": member.peer,
        "initial-cluster": ",".join(f"{each.name}={each.peer}" for each in members),
        "initial-cluster-token": token,
        "initial-cluster-state": "new",
        "logger": "zap",
        "log-level": "warn",
    }
    return ["etcd", *(f"--{name}={value}" for name, value in options.items())]


def launch(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a member, which goes on without us. Raises PlatformError."""
    # Settings of the machine's own etcd, if it has one, are not meant for this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    try:
        with log.open("ab") as output:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment,
            )
    except FileNotFoundError:
        raise PlatformError("there is no etcd on this machine: apt-get install etcd-server") from None


def is_healthy(member: Member) -> bool:
    """Whether the member answers, and belongs to a cluster that has a leader."""
    asking = http.client.HTTPConnection(member.address, member.port, timeout=2)
    try:
        asking.request("GET", "/health")
        return asking.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asking.close()


def log_of(pid_file: Path) -> Path:
    """Where a member that was started with a file for its process id writes."""
    return pid_file.with_suffix(".log")


def main(pid_file: Path, argv: Sequence[str]) -> int:
    """Start a member, write its process id, and leave it to itself; returns the exit code."""
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        process = launch(argv, log_of(pid_file))
    except PlatformError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    pid_file.write_text(f"{process.pid}\n", encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
