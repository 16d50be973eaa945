"""Programs lease ports over the local socket: held while they live, used by others as soon as they do not."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from nodes import Lab, Node, eventually
from users import user

from dnat.client import Client, PortLease, aio, lease
from dnat.errors import PlatformError, UsageError
from dnat.instance import Instance
from dnat.system import netns

UDP = socket.SOCK_DGRAM
GROUP, GID = "games", 60
"""A group that every Debian system has."""
MEMBER, STRANGER = 4001, 4002
DOCUMENTS = [Path(__file__).parents[2] / name for name in ("README.md", "docs/api.md")]

HOLDER = """
import sys
from pathlib import Path
from dnat.client import lease
ports = lease(2, parity="even", path=Path(sys.argv[1]))
print(ports.first, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def phone(routed_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A phone where members of a group may lease, little."""
    phone = routed_lab["phone1"]
    table = f'[api]\ngroup = "{GROUP}"\nleases_per_user = 3\nports_per_user = 20'
    with phone.configured(table, tmp_path_factory.mktemp("api")):
        yield phone


@pytest.fixture
def path(phone: Node) -> Path:
    return Instance(phone.namespace).socket


@contextmanager
def member() -> Iterator[None]:
    with user(MEMBER, groups=[GID]):
        yield


@contextmanager
def holder(phone: Node, path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A program that holds two ports until its input ends; its first port."""
    program = netns.popen(
        [sys.executable, "-c", HOLDER, str(path)],
        phone.namespace,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdout is not None
        try:
            yield program, int(program.stdout.readline())
        finally:
            program.kill()


def explicit(node: Node) -> set[int]:
    """First ports of the explicit leases; the server's include those of every host."""
    return {each["first"] for each in node.show()["leases"] if each["purpose"] == "explicit"}


def arrives(lab: Lab, phone: Node, port: int) -> bool:
    """Whether the outside reaches a program at this port."""
    with phone.socket(UDP, port) as server, lab["ext"].socket(UDP) as client:
        client.sendto(b"hello", (lab.external, port))
        return server.recv(100) == b"hello"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None], ids=["killed", "terminated", "ends"])
def test_ports_are_held_while_the_program_lives(
    routed_lab: Lab, phone: Node, path: Path, how: signal.Signals | None
) -> None:
    with holder(phone, path) as (program, first):
        assert first % 2 == 0
        assert arrives(routed_lab, phone, first)
        assert arrives(routed_lab, phone, first + 1)
        assert first in explicit(routed_lab["router"])
        if how is not None:
            program.send_signal(how)
        else:
            program.communicate()
        eventually(lambda: first not in explicit(routed_lab["router"]), "the ports are given back", 20)
        assert first not in explicit(phone)


def test_examples_of_the_documentation(phone: Node) -> None:
    """Each has less than ten lines and does what it says."""
    found = 0
    for document in DOCUMENTS:
        for code in re.findall(r"^```python\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL):
            assert len(code.splitlines()) < 10, code
            said = phone.run(sys.executable, "-c", code).stdout
            assert re.search(r"198\.51\.100\.1:\d+", said), (code, said)
            found += 1
    assert found >= 3
    eventually(lambda: not explicit(phone), "all ports are given back", 20)


def test_what_happens_is_told_to_who_watches(routed_lab: Lab, phone: Node, path: Path) -> None:
    router = routed_lab["router"]
    with Client(path) as watcher, Client(path) as silent, lease(path=path) as mine:
        standing = watcher.call("watch")
        assert standing["address"] == routed_lab.external
        assert mine.id in {each["id"] for each in standing["leases"]}
        asked = phone.request("--ports", "1")
        granted = watcher.event()
        assert (granted["event"], granted["lease"]["id"]) == ("granted", asked["id"])
        phone.dnatctl("release", asked["id"])
        assert watcher.event()["event"] == "released"
        router.dnatctl("invalidate", str(mine.first), "--reason", "for a test")
        lost = watcher.event()
        assert (lost["event"], lost["lease"]["first"]) == ("lost", mine.first)
        assert (lost["reason"], lost["code"]) == ("for a test", "administrative")
        assert silent.call("status")["roles"] == ["host"]


def test_a_program_hears_that_its_ports_are_lost(routed_lab: Lab, path: Path) -> None:
    heard: list[str] = []
    told = threading.Event()

    def lost(ports: PortLease) -> None:
        heard.append(ports.reason)
        told.set()

    with lease(on_lost=lost, path=path) as ports, lease(path=path) as other:
        assert ports.held and not ports.wait(0.01)
        routed_lab["router"].dnatctl("invalidate", str(ports.first), "--reason", "needed elsewhere")
        assert ports.wait(20) and told.wait(20)
        assert heard == ["needed elsewhere"]
        assert not ports.held and other.held
    assert other.reason == ""


def test_asyncio_programs(routed_lab: Lab, phone: Node, path: Path) -> None:
    async def story() -> tuple[str, str]:
        async with aio.lease(4, protocol="udp", path=path) as ports, aio.lease(path=path) as other:
            assert len(ports.ports) == 4 and ports.address == routed_lab.external
            router = routed_lab["router"]
            asking = asyncio.to_thread(router.dnatctl, "invalidate", str(ports.first), "--reason", "once")
            _, reason = await asyncio.gather(asking, ports.lost())
            assert not ports.held and other.held
            waiting = asyncio.create_task(other.lost())
            phone.dnatctl("release", other.id)
            return reason, await waiting

    assert asyncio.run(asyncio.wait_for(story(), 40)) == ("once", "released by the operator")
    eventually(lambda: not explicit(phone), "nothing is left", 20)


def test_leases_outlive_the_daemon_but_not_their_program(routed_lab: Lab, phone: Node, path: Path) -> None:
    """Of two programs one dies while there is no daemon: its ports are given back, the other's stay."""
    with lease(path=path) as survivor, holder(phone, path) as (program, first):
        pid = phone.pid()
        phone.kill()
        program.kill()
        program.wait()
        with phone.socket(UDP, survivor.first) as server, routed_lab["ext"].socket(UDP) as client:
            client.sendto(b"no daemon", (routed_lab.external, survivor.first))
            assert server.recv(100) == b"no daemon"
        phone.dnatctl("up", "--config", str(phone.configuration))
        assert phone.pid() != pid
        assert {survivor.first, first} <= explicit(phone)
        eventually(lambda: first not in explicit(phone), "unclaimed ports are given back", 40)
        assert survivor.held
        assert survivor.first in explicit(phone)
        assert arrives(routed_lab, phone, survivor.first)
        routed_lab["router"].dnatctl("invalidate", str(survivor.first))
        assert survivor.wait(20), "the new daemon tells what the old one would have told"


def test_a_command_gets_ports_of_its_own(routed_lab: Lab, phone: Node) -> None:
    told = phone.dnatctl(
        "hold", "--ports", "2", "--parity", "even", "--", "sh", "-c", 'echo "$DNAT_ADDRESS $DNAT_PORT"'
    )
    address, first = told.stdout.split()
    assert address == routed_lab.external and int(first) % 2 == 0
    eventually(lambda: int(first) not in explicit(phone), "they are given back", 20)
    assert phone.dnatctl("hold", "--", "sh", "-c", "exit 7", code=7)
    assert "cannot be run" in phone.dnatctl("hold", "--", "/no/such/program", code=2).stderr
    # The lease is taken from a program that would run for ever.
    script = f"echo $DNAT_PORT > {phone.runtime}/held; exec sleep 1000"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(phone.dnatctl, "hold", "--", "sh", "-c", script, code=3)
        held = phone.runtime / "held"
        port = eventually(lambda: held.exists() and held.read_text().strip(), "it runs", 20)
        routed_lab["router"].dnatctl("invalidate", port, "--reason", "enough")
        assert "enough" in running.result().stderr
    held.unlink()


def test_events_on_the_command_line(phone: Node) -> None:
    with ThreadPoolExecutor(1) as pool:
        for output in ("text", "json"):
            watching = pool.submit(phone.dnatctl, "watch", "-o", output, "--count", "2")
            while not watching.done():
                phone.dnatctl("release", phone.request("--ports", "1")["id"])
            said = watching.result().stdout
            assert len(said.splitlines()) == 2
            assert "granted" in said and "released" in said


def test_down_takes_everything_and_says_so(phone: Node, path: Path) -> None:
    with lease(path=path) as ports:
        phone.dnatctl("down")
        assert ports.wait(20)
        assert ports.reason == "released by the operator"
    phone.dnatctl("up", "--config", str(phone.configuration))


def test_who_may_lease(phone: Node, path: Path) -> None:
    with user(STRANGER), pytest.raises(PlatformError, match=f'members of the group "{GROUP}"'):
        lease(path=path)
    with user(STRANGER), Client(path) as client:
        assert client.call("show")["leases"] and client.call("watch")
        for method in ("request", "release", "stop", "map", "invalidate"):
            with pytest.raises(PlatformError, match="for root"):
                client.call(method)
    with member(), lease(path=path) as ports:
        assert ports.held


def test_a_user_gets_so_much_and_no_more(phone: Node, path: Path) -> None:
    with member(), Client(path) as client:
        with pytest.raises(UsageError, match="20 ports"):
            client.call("lease", count=21)
        with pytest.raises(UsageError, match="for root"):
            client.call("lease", first=80)
        first = client.call("lease", count=10)["lease"]
        with pytest.raises(UsageError, match="20 ports"):
            client.call("lease", count=11)
        client.call("lease", count=4)
        client.call("lease", count=4)
        with Client(path) as another, pytest.raises(UsageError, match="3 leases"):
            another.call("lease")
        client.call("give_back", leases=[first["id"]])
        client.call("lease", count=2)


def test_nobody_touches_the_leases_of_others(phone: Node, path: Path) -> None:
    with lease(path=path) as roots, member(), Client(path) as client, Client(path) as other:
        mine = client.call("lease")["lease"]["id"]
        for method, whose in (("give_back", roots.id), ("give_back", "0"), ("give_back", "x")):
            with pytest.raises(UsageError):
                client.call(method, leases=[whose])
        assert client.call("keep", leases=[roots.id, "00"]) == {"leases": []}
        with pytest.raises(UsageError, match="no lease"):
            other.call("give_back", leases=[mine])
        with pytest.raises(UsageError, match="another connection"):
            other.call("keep", leases=[mine])
        assert roots.held
    assert IPv4Address(roots.address)


def test_a_user_who_leases_without_pause_leaves_the_host_its_share(routed_lab: Lab, phone: Node, path: Path) -> None:
    """The port server drops what a host asks above its rate, renewals, too; so programs are slowed down before that."""
    router = routed_lab["router"]
    dropped = router.show()["pap"]["server"].get("host-above-rate", 0)
    with member(), Client(path) as client:
        began = time.monotonic()
        for _ in range(60):
            client.call("give_back", leases=[client.call("lease")["lease"]["id"]])
        assert time.monotonic() - began > 7
    assert router.show()["pap"]["server"].get("host-above-rate", 0) == dropped


FLOOD = """
import json, os, socket, sys, time
os.setgroups([]), os.setgid(4002), os.setuid(4002)
clients = []
for _ in range(40):
    client = socket.socket(socket.AF_UNIX)
    client.connect(sys.argv[1])
    client.setblocking(False)
    clients.append(client)
print("on", flush=True)
end, line = time.monotonic() + 60, b'{"method": "show"}\\n' * 20
while time.monotonic() < end:
    for client in clients:
        try:
            client.send(line)
        except OSError:
            pass
    time.sleep(0.001)
"""


def test_a_user_who_floods_the_socket_delays_nobody(phone: Node, path: Path) -> None:
    """Forty connections that ask and never read; root leases and gives back meanwhile."""
    command = [sys.executable, "-c", FLOOD, str(path)]
    with netns.popen(command, phone.namespace, stdout=subprocess.PIPE) as flood:
        try:
            assert flood.stdout is not None and flood.stdout.readline()
            for _ in range(20):
                phone.call("release", ids=[phone.call("request")["lease"]["id"]])
            assert flood.poll() is None
            memory = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{phone.pid()}/status").read_text())
            assert memory is not None and int(memory[1]) < 200_000, "kilobytes"
        finally:
            flood.kill()
    assert phone.call("status")["roles"] == ["host"]
