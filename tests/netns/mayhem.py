"""Processes that are killed without warning, at any moment, and come back, while calls run and hosts ask for ports.

`Mayhem` knows nothing but victims: a daemon, a member of a cluster, whatever can be killed and started again. The
judges look at what must never happen, whatever dies.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodes import Lab, Machine, Node, eventually

from dnat.client import Client
from dnat.errors import DnatError
from dnat.lab import builder, control
from dnat.system import netns

MOMENTS = (0.0, 0.4)
"""Seconds between any two deeds, at random: long enough to cut a question, its commit and its answer anywhere."""
PATIENCE = 60.0
"""Seconds within which all must be well again."""
MOST_HELD = 6
"""Leases that a host asks for beside those that it has anyway."""


@dataclass(frozen=True)
class Victim:
    """Something that dies and comes back."""

    name: str
    kill: Callable[[], None]
    """Harmless if it is dead."""
    revive: Callable[[], None]
    """Returns when it is back; harmless if it lives."""
    start: Callable[[], None] | None = None
    """Begins to revive it and does not wait: so that it can be killed again on its way up."""


def daemon(machine: Machine) -> Victim:
    """The dnat daemon of a machine. What it started stays, as after a real crash."""

    def alive() -> int | None:
        with contextlib.suppress(OSError, ValueError):
            pid = machine.pid()
            if b"dnat" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def kill() -> None:
        if (pid := alive()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            eventually(lambda: not Path(f"/proc/{pid}/cwd").exists(), f"process {pid} is gone", PATIENCE)

    def revive() -> None:
        # What `start` began may still be on its way up, or have been killed there.
        eventually(lambda: machine.dnatctl("up", code=None).returncode == 0, f"{machine.namespace} is up", PATIENCE)

    def start() -> None:
        _reap(netns.popen([control.DNATCTL, "up"], machine.namespace, stdout=-3, stderr=-3))

    return Victim(machine.namespace, kill, revive, start)


def member(lab: Lab, name: str) -> Victim:
    """A member of the lab's etcd cluster."""

    def kill() -> None:
        if (pid := builder.etcd_pid(lab.topology, name)) is not None:
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: builder.etcd_pid(lab.topology, name) is None, f"{name} is gone", PATIENCE)

    return Victim(name, kill, lambda: builder.start_etcd(lab.topology, name))


def _reap(process: Any) -> None:
    threading.Thread(target=process.wait, daemon=True).start()


@dataclass
class Asker:
    """A program on a host that leases ports and gives them back, all the time, and believes what it is told."""

    host: Node
    seed: int
    granted: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Leases that it was given, by identifier, without those that it tried to give back."""
    answers: int = 0
    _end: threading.Event = field(default_factory=threading.Event)
    _pause: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Asker:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for lease in list(self.granted):
            self.host.dnatctl("release", lease, code=None)

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Nothing is asked meanwhile."""
        with self._pause:
            yield

    def _run(self) -> None:
        dice = random.Random(self.seed)
        while not self._end.wait(dice.uniform(0.0, 0.05)):
            # The daemon that was asked may die meanwhile: what it granted is known to the server alone.
            with self._pause, contextlib.suppress(DnatError, OSError):
                self._ask(dice)

    def _ask(self, dice: random.Random) -> None:
        with Client(self.host.runtime / "api.sock", timeout=PATIENCE) as client:
            if len(self.granted) < MOST_HELD:
                lease = client.call("request", count=dice.choice((1, 2, 4)))["lease"]
                self.granted[lease["id"]] = lease
            else:
                lease = self.granted.pop(dice.choice(sorted(self.granted)))
                client.call("release", ids=[lease["id"]])
            self.answers += 1


@dataclass
class Mayhem:
    """Deaths in any order, and a judgement after each."""

    victims: Sequence[Victim]
    servers: Sequence[Node]
    """Each knows every lease."""
    routers: Sequence[Node]
    askers: Sequence[Asker]
    seed: int
    flows: Callable[[], int]
    """Packets received so far on the calls that must not notice anything."""
    say: Callable[[str], None] = lambda _: None
    deaths: int = 0

    def run(self, deaths: int) -> None:
        """Kill as often as that."""
        dice = random.Random(self.seed)
        started = time.monotonic()
        while self.deaths < deaths:
            self._round(dice)
            if self.deaths % 10 == 0 or self.deaths >= deaths:
                answers = sum(each.answers for each in self.askers)
                spent = time.monotonic() - started
                self.say(f"{self.deaths} of {deaths} deaths, {answers} answers, {spent:.0f} s, seed {self.seed}")

    def _round(self, dice: random.Random) -> None:
        doomed = dice.sample(list(self.victims), dice.choice((1, 1, 1, 2)) if len(self.victims) > 1 else 1)
        for victim in doomed:
            time.sleep(dice.uniform(*MOMENTS))
            victim.kill()
            self.deaths += 1
        time.sleep(dice.uniform(*MOMENTS))
        for victim in doomed:
            if victim.start is not None and dice.random() < 0.3:
                victim.start()
                time.sleep(dice.uniform(0.0, 1.5))
                victim.kill()
                self.deaths += 1
        # At once, for two of three members of a cluster become healthy together or not at all.
        with ThreadPoolExecutor(len(doomed)) as pool:
            list(pool.map(lambda victim: victim.revive(), doomed))
        before = self.flows()
        eventually(lambda: self.flows() > before + 20, f"packets flow after the death of {doomed}", PATIENCE)
        self.judge()

    def judge(self) -> None:
        """No port has two owners, nobody lost a lease that it was given, and all agree."""
        with contextlib.ExitStack() as stack:
            for asker in self.askers:
                stack.enter_context(asker.silent())
            for server in self.servers:
                eventually(lambda server=server: self._complaint(server) is None, "servers and hosts agree", PATIENCE)
            owners = _ports(self.servers[0].call("show")["leases"])
            for router in self.routers:
                eventually(
                    lambda router=router: _ports(router.call("show")["owners"]) == owners,
                    f"{router.name} knows every owner",
                    PATIENCE,
                )

    def _complaint(self, server: Node) -> str | None:
        """What is wrong with what a server knows. Two owners are never right, not even for a moment."""
        known = server.call("show")["leases"]
        for one, other in itertools.combinations(known, 2):
            apart = one["last"] < other["first"] or other["last"] < one["first"]
            same = one["protocol"] == other["protocol"] or "any" in (one["protocol"], other["protocol"])
            assert apart or not same or one["address"] != other["address"], f"two owners: {one} and {other}"
        held = _ports(known)
        for asker in self.askers:
            for lease in asker.granted.values():
                if (lease["address"], lease["first"], lease["last"], asker.host.address) not in held:
                    return f"{asker.host.name} was given {lease}, which {server.name} does not know"
            for lease in asker.host.call("show")["leases"]:
                if (lease["address"], lease["first"], lease["last"], asker.host.address) not in held:
                    return f"{asker.host.name} holds {lease}, which {server.name} does not know"
        return None


def _ports(rows: Sequence[dict[str, Any]]) -> set[tuple[str, int, int, str]]:
    return {(row["address"], row["first"], row["last"], row["host"]) for row in rows}
