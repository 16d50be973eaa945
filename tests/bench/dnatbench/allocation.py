"""Durable leases a second over a network, and how long a renewal takes: dnat's server beside Kea's DHCP server.

Each offer starts a fresh server with an empty store and sends it questions at a rate, whatever it answers. A rate is
kept if 99 of 100 are answered in time.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Protocol

from dnat.lab import control
from dnat.pap.auth import Key
from dnat.pap.keyring import KeyRecord, KeyState, PutKey
from dnat.store import SqliteKeyStore
from dnat.system import netns
from dnat.system.paths import RUN_DIRECTORY, STATE_DIRECTORY
from dnatbench.measure import Summary, ratio
from dnatbench.pap_load import LATE, PORTS, Plan
from dnatbench.topology import run as run_in

SERVER = IPv4Address("10.80.0.1")
CLIENTS = IPv4Address("10.80.0.2")
FIRST_HOST = IPv4Address("10.81.0.1")
"""Hosts are addresses of 10.81.0.0/16, which one machine owns as a whole; Kea leases from the same network."""
HOSTS = 4000
COMPILED = Path(__file__).parents[3] / "build/compiled"
"""What `make compiled` makes."""
KEPT = 0.99
LOWEST = 100.0
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Offer:
    """What came of questions at one rate."""

    answered: float
    """Part of the new leases that were asked for."""
    renewals: list[float]
    """Milliseconds that each renewal took."""
    cpu: float
    """Microseconds of the server for an answered question, its kernel time included."""


class Peer(Protocol):
    """A server that can be started anew."""

    name: str

    def offer(self, rate: float, seconds: float) -> Offer:
        """Start afresh and ask for new leases."""
        ...

    def renew(self, rate: float, seconds: float) -> Offer:
        """Start afresh; half of the questions are for new leases, the others renew those."""
        ...


class Network:
    """A machine of servers and a machine of clients, on one cable."""

    def __init__(self) -> None:
        self.servers, self.clients = (f"bench{os.getpid()}-{each}" for each in ("servers", "clients"))

    def __enter__(self) -> Network:
        for name in (self.servers, self.clients):
            netns.create(name)
            run_in(name, "ip link set lo up")
        run_in(
            self.servers,
            f"ip link add lan type veth peer name eth0 netns {self.clients}",
            f"ip addr add {SERVER}/24 dev lan",
            "ip link set lan up",
            f"ip route add 10.81.0.0/16 via {CLIENTS}",
        )
        run_in(
            self.clients,
            f"ip addr add {CLIENTS}/24 dev eth0",
            "ip link set eth0 up",
            "ip route add local 10.81.0.0/16 dev lo",
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0",
        )
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self.servers, self.clients):
            netns.delete(name)
            for directory in (RUN_DIRECTORY, STATE_DIRECTORY):
                shutil.rmtree(directory / name, ignore_errors=True)


class Dnat:
    """`dnatd` with SQLite and a key for every host."""

    def __init__(self, network: Network, directory: Path, keys: list[bytes], compiled: Path | None = None) -> None:
        """``compiled``: where the package stands whose pure modules are C extensions."""
        self.name = "dnat, compiled" if compiled else "dnat"
        self._network = network
        self._state = STATE_DIRECTORY / network.servers
        self._configuration = directory / "dnat.toml"
        self._keys = keys
        self._environment = os.environ | ({"PYTHONPATH": str(compiled.absolute())} if compiled else {})

    def offer(self, rate: float, seconds: float) -> Offer:
        return self._offer([(round(rate * seconds), 0, rate)])

    def renew(self, rate: float, seconds: float) -> Offer:
        count = round(rate * seconds / 2)
        return self._offer([(count, 0, rate / 2), (count, count, rate)])

    def _offer(self, phases: list[tuple[int, int, float]]) -> Offer:
        with self._serving(sum(grants for grants, _, _ in phases)) as pid:
            plan = Plan(str(SERVER), str(FIRST_HOST), [each.hex() for each in self._keys], phases)
            before = _cpu_seconds(pid)
            with netns.enter(self._network.clients):
                done = subprocess.run(
                    [sys.executable, "-m", "dnatbench.pap_load"],
                    input=json.dumps(asdict(plan)),
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=120,
                )
            spent = _cpu_seconds(pid) - before
        outcome = json.loads(done.stdout)
        grants, renewals = outcome["grants"], outcome["renewals"]
        questions = sum(grants + renewals for grants, renewals, _ in phases)
        return Offer(grants["answered"] / grants["sent"], renewals["latencies"], spent / questions * 1e6)

    @contextmanager
    def _serving(self, grants: int) -> Iterator[int]:
        externals = [str(IPv4Address("198.51.0.1") + n) for n in range(grants * PORTS // 49_000 + 2)]
        self._configuration.write_text(
            f'roles = ["server"]\n[server]\nexternal_addresses = {json.dumps(externals)}\nlisten = "{SERVER}"\n'
            'networks = ["10.81.0.0/16"]\nauthentication = "strict"\nports_per_host = 65535\n'
            # The limits against floods are not what is measured.
            "requests_per_second = 1000\nnew_leases_per_second = 100000\n"
        )
        # Without its first start the server is new, and waits for no host to register what it had.
        for path in (*self._state.glob("leases.sqlite*"), *self._state.glob("first-start")):
            path.unlink()
        up = [control.DNATCTL, "up", "--config", str(self._configuration)]
        netns.run(up, self._network.servers, check=True, capture_output=True, timeout=60, env=self._environment)
        try:
            yield int((RUN_DIRECTORY / self._network.servers / "daemon.pid").read_text())
        finally:
            netns.run([control.DNATCTL, "down"], self._network.servers, check=True, capture_output=True, timeout=60)


async def write_keys(network: Network) -> list[bytes]:
    """Give every host a key; returns them."""
    keys = [secrets.token_bytes(32) for _ in range(HOSTS)]
    store = SqliteKeyStore(STATE_DIRECTORY / network.servers / "keys.sqlite")
    await store.open()
    await store.transact(
        [
            PutKey(KeyRecord(Key(n + 1, key), f"host{n}", (n + 1).to_bytes(16), KeyState.ACTIVE, False, 1.0 + n))
            for n, key in enumerate(keys)
        ]
    )
    await store.close()
    return keys


class Kea:
    """Kea's DHCPv4 server with its memfile, driven by its own perfdhcp."""

    name = "Kea DHCPv4, memfile"

    def __init__(self, network: Network, directory: Path) -> None:
        self._network = network
        self._leases = directory / "kea-leases.csv"
        self._configuration = directory / "kea.json"
        self._directory = directory
        subnet = {"subnet": "10.0.0.0/8", "pools": [{"pool": "10.128.0.0-10.255.255.254"}]}
        log = {"name": "kea-dhcp4", "severity": "ERROR", "output_options": [{"output": str(directory / "kea.log")}]}
        memfile = {"type": "memfile", "persist": True, "name": str(self._leases), "lfc-interval": 0}
        dhcp4 = {
            "interfaces-config": {"interfaces": ["lan"]},
            "lease-database": memfile,
            "valid-lifetime": 3600,
            "subnet4": [subnet],
            "loggers": [log],
        }
        self._configuration.write_text(json.dumps({"Dhcp4": dhcp4}))

    def offer(self, rate: float, seconds: float) -> Offer:
        return self._offer(rate, seconds)

    def renew(self, rate: float, seconds: float) -> Offer:
        return self._offer(rate / 2, seconds, "-f", str(round(rate / 2)), "-x", "t")

    def _offer(self, rate: float, seconds: float, *more: str) -> Offer:
        with self._serving() as pid:
            before = _cpu_seconds(pid)
            argv = ["perfdhcp", "-4", "-l", "eth0", "-r", str(round(rate)), "-R", "4000000", "-p", str(round(seconds))]
            argv += ["-d", str(LATE), "-W", str(int(LATE * 1e6)), *more]
            # It exits with 3 where questions were lost.
            done = netns.run(argv, self._network.clients, capture_output=True, text=True, timeout=120)
            spent = _cpu_seconds(pid) - before
        received = [int(each) for each in re.findall(r"^received packets: (\d+)", done.stdout, re.MULTILINE)]
        if len(received) < 2:
            raise RuntimeError(f"perfdhcp failed: {done.stdout}{done.stderr}")
        offered, acknowledged, renewed = (*received, 0)[:3]
        *_, listed = done.stdout.partition("***Timestamps for packets: REQUEST-ACK (renewal)***")
        stamps = re.findall(r"^sent / received: ([\d.]+) / ([\d.]+)", listed, re.MULTILINE)
        times = [(float(back) - float(sent)) * 1e3 for sent, back in stamps]
        return Offer(acknowledged / (rate * seconds), times, spent / (offered + acknowledged + renewed or 1) * 1e6)

    @contextmanager
    def _serving(self) -> Iterator[int]:
        for path in self._directory.glob("kea-leases.csv*"):
            path.unlink()
        environment = os.environ | {"KEA_PIDFILE_DIR": str(self._directory), "KEA_LOCKFILE_DIR": "none"}
        argv = ["kea-dhcp4", "-c", str(self._configuration)]
        server = netns.popen(
            argv, self._network.servers, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 10
            while not self._leases.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("kea-dhcp4 did not start")
                time.sleep(0.02)
            time.sleep(0.3)
            yield server.pid
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(10)


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rounds: int
    seconds: int
    """Of each offer."""
    start: float
    """The lowest rate that is tried first."""
    step: float = 1.1
    """From one rate to the next."""


FULL = Extent(rounds=4, seconds=2, start=4000.0)
SHORT = Extent(rounds=1, seconds=1, start=2000.0, step=1.6)


def run(extent: Extent, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The servers in turn: the highest rate that each keeps, and its renewals while busy with half of that."""
    say("allocation: leases over a network, beside Kea")
    with Network() as network, tempfile.TemporaryDirectory(prefix="dnat-bench-") as name:
        directory, keys = Path(name), asyncio.run(write_keys(network))
        peers: list[Peer] = [Dnat(network, directory, keys), Kea(network, directory)]
        if (COMPILED / "dnat").exists():
            peers.insert(0, Dnat(network, directory, keys, COMPILED))
        rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
        cpu: dict[str, list[float]] = {peer.name: [] for peer in peers}
        renewals: dict[str, list[list[float]]] = {peer.name: [] for peer in peers}
        for number in range(extent.rounds):
            for peer in peers if number % 2 == 0 else reversed(peers):
                before = rates[peer.name]
                start = before[-1] / extent.step**2 if before else extent.start
                rate, spent = highest(peer, start, extent)
                say(f"allocation: {peer.name} keeps {rate:.0f}/s")
                rates[peer.name].append(rate)
                cpu[peer.name].append(spent)
            for peer in peers if number % 2 == 0 else reversed(peers):
                half = statistics.median(rates[peer.name]) / 2
                renewals[peer.name].append(sorted(peer.renew(half, extent.seconds).renewals))
    kea = rates[Kea.name]
    return [
        {
            "what": peer.name,
            "per_second": asdict(Summary.of(rates[peer.name])),
            "of_kea": asdict(ratio(rates[peer.name], kea)),
            "cpu_us": asdict(Summary.of(cpu[peer.name])),
            "renewal_ms": {
                str(part): asdict(Summary.of([each[int(len(each) * part / 100)] for each in renewals[peer.name]]))
                for part in PERCENTILES
            },
        }
        for peer in peers
    ]


def highest(peer: Peer, start: float, extent: Extent) -> tuple[float, float]:
    """The highest rate of questions that a server keeps, 0 for none, and CPU microseconds for a question there."""
    kept, cpu, rate = 0.0, 0.0, start
    while True:
        offer = peer.offer(rate, extent.seconds)
        if offer.answered >= KEPT:
            kept, cpu = rate, offer.cpu
        elif kept or rate <= LOWEST:
            return kept, cpu
        # One that fails at once was started too high.
        rate = rate * extent.step if kept else max(rate / extent.step**3, LOWEST)


def _cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
