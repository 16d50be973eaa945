"""Any history of hosts, server, operator, store and link, as a state machine that Hypothesis drives and shortens.

What must hold after everything that happens: no port has two owners, in the store or in use by hosts; what was granted
to a host stays its own until its time is up; what was freed rests before another host gets it. And what must come of
it: once all is well again, everybody agrees.

``make soak`` plays longer histories, and more of them.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable
from ipaddress import IPv4Address

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, initialize, invariant, multiple, rule
from pap_link import LAN, LATENCY, Host, Network, overlap

from dnat.leases.pool import Pool
from dnat.leases.records import LeaseRecord
from dnat.leases.table import HOLD
from dnat.pap.codec import decode
from dnat.pap.events import Granted, Refused
from dnat.pap.guard import Mode
from dnat.pap.keyring import KeyState
from dnat.pap.messages import MessageType, Result, Want
from dnat.pap.policy import Policy
from dnat.types import PortRange, Protocol, Purpose

ADDRESSES = (IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2"))
POOL = Pool(ADDRESSES, (PortRange(20480, 20495),), (PortRange(5060, 5061),))
LIFETIME = 60
"""Seconds; shorter than the hold, so that even a host that hears nothing has stopped before another begins."""
SLACK = 2.0
"""Seconds between a decision and its becoming durable."""
EXAMPLES, STEPS = 600, 40
LONG = float(os.environ.get("DNAT_SOAK", "1"))
"""How many times as many histories are played."""


class Watched(Network):
    """A network whose promises are remembered."""

    def __init__(self, mode: Mode | None) -> None:
        self.promised: dict[int, tuple[bytes, float]] = {}
        """Of each lease that was answered: to which host, and until when."""
        self.given_back: set[int] = set()
        """Leases whose RELEASE was sent: what the server says of them before it has it is no promise."""
        self.learn_until = 0.0
        super().__init__(POOL, Policy((LAN,), lifetime=LIFETIME), mode)

    def start_server(self, *, announce: bool = False, learn: float = 0.0) -> None:
        """A server that was learning when it crashed goes on with that."""
        self.learn_until = max(self.learn_until, self.now + learn)
        left = self.learn_until - self.now
        super().start_server(announce=left > 0, learn=max(0.0, left))

    def _send(self, octets: bytes, source: str, target: str, arrive: Callable[[], None]) -> None:
        message = decode(octets)
        if message.type is MessageType.RESPONSE and message.result.ok and message.host_id is not None:
            for info in message.leases:
                if info.lifetime and info.id not in self.given_back:
                    # The lifetime counts from the decision; the answer leaves when that is durable.
                    until = max(self.now - SLACK + info.lifetime, self.promised.get(info.id, (b"", 0.0))[1])
                    self.promised[info.id] = message.host_id, until
        if message.type is MessageType.RELEASE:
            self.given_back |= {info.id for info in message.leases}
            self.forget(info.id for info in message.leases)
        super()._send(octets, source, target, arrive)

    def forget(self, leases: object) -> None:
        """These promises were taken back, or given up."""
        for lease_id in tuple(leases):  # type: ignore[arg-type]
            self.promised.pop(lease_id, None)


class AnyHistory(RuleBasedStateMachine):
    """The rules are what may happen to any part, at any time."""

    hosts = Bundle("hosts")

    @initialize(
        target=hosts,
        seed=st.integers(0, 2**32),
        mode=st.sampled_from((None, Mode.OPEN, Mode.TOFU, Mode.TOFU, Mode.STRICT)),
    )
    def begin(self, seed: int, mode: Mode | None) -> MultipleResults[Host]:
        self.random = random.Random(seed)
        self.net = net = Watched(mode)
        net.draw = lambda: self.random.getrandbits(64)  # type: ignore[method-assign]
        net.start_server()
        net.on_change = self.check
        self.known: dict[int, LeaseRecord] = {}
        self.freed: list[tuple[float, LeaseRecord]] = []
        self.last_octets = itertools.count(11)
        self.meddled_with: set[Host] = set()
        """Hosts whose keys the operator took from the server, which may have failed half-way: he has to see to them."""
        return multiple(*(self.a_new_host() for _ in range(3)))

    # Hosts

    @rule(target=hosts)
    def a_host_comes(self) -> Host:
        return self.a_new_host()

    def a_new_host(self) -> Host:
        number = next(self.last_octets)
        host = self.net.host(f"host{number}", number)
        self.give_key(host)
        host.agent.resume(self.net.now)
        return host

    @rule(host=hosts, count=st.sampled_from((1, 2, 4, 8)), protocol=st.sampled_from(Protocol))
    def it_wants_ports(self, host: Host, count: int, protocol: Protocol) -> None:
        host.agent.want(Want(count, protocol, Purpose.EPHEMERAL), self.net.now)

    @rule(host=hosts, protocol=st.sampled_from(Protocol))
    def it_wants_the_port_of_sip(self, host: Host, protocol: Protocol) -> None:
        host.agent.want(Want(1, protocol, Purpose.EXPLICIT, first=5060), self.net.now)

    @rule(host=hosts, which=st.integers(0, 31))
    def it_gives_a_lease_back(self, host: Host, which: int) -> None:
        if host.agent.leases:
            host.agent.release(host.agent.leases[which % len(host.agent.leases)].id, self.net.now)

    @rule(host=hosts)
    def it_asks_what_it_holds(self, host: Host) -> None:
        host.agent.resume(self.net.now)

    @rule(host=hosts)
    def it_changes_its_key(self, host: Host) -> None:
        host.agent.change_key(self.net.now)

    @rule(host=hosts, skew=st.sampled_from((0.0, 10.0, -90.0, 1e6)))
    def its_daemon_restarts(self, host: Host, skew: float) -> None:
        saved, epoch = host.agent.leases, host.agent.epoch_state
        self.net.reboot(host, skew)
        host.agent.adopt(saved, self.net.now, epoch)

    @rule(host=hosts)
    def its_power_fails(self, host: Host) -> None:
        self.net.reboot(host)
        host.agent.resume(self.net.now)

    @rule(host=hosts)
    def it_gets_another_address(self, host: Host) -> None:
        self.net.move(host, next(self.last_octets))

    @rule(host=hosts)
    def its_cable_is_pulled(self, host: Host) -> None:
        self.net.unplugged.add(host.name)

    @rule()
    def all_cables_are_in(self) -> None:
        self.net.unplugged.clear()

    # The server and its store

    @rule(durable=st.booleans(), away=st.sampled_from((0.0, 0.5, 5.0, 200.0)))
    def the_server_crashes(self, durable: bool, away: float) -> None:
        self.net.stop_server(durable)
        self.net.at(self.net.now + away, self.net.start_server)

    @rule()
    def the_store_is_lost(self) -> None:
        """Hosts register what they hold before others are granted anything; who hears nothing has stopped by then."""
        self.net.promised.clear()
        self.known, self.freed = {}, []
        self.net.lose_store(learn=LIFETIME + SLACK)

    @rule(seconds=st.sampled_from((0.0, 0.2, 1.0)))
    def commits_take(self, seconds: float) -> None:
        self.net.commit_time = seconds

    @rule(seconds=st.sampled_from((0.5, 3.0, 30.0)))
    def the_store_fails_for(self, seconds: float) -> None:
        self.net.broken_until = self.net.now + seconds

    # The operator

    @rule(which=st.integers(0, 63))
    def a_lease_is_taken_back(self, which: int) -> None:
        if self.net.server is not None and self.net.store.leases:
            lease_id = sorted(self.net.store.leases)[which % len(self.net.store.leases)]
            self.take_back([lease_id], Result.ADMINISTRATIVE)

    @rule()
    def everything_is_drained(self) -> None:
        if self.net.server is not None:
            self.net.server.decisions.draining = True

    @rule(address=st.sampled_from(ADDRESSES))
    def an_address_is_drained(self, address: IPv4Address) -> None:
        if self.net.server is not None:
            self.net.forget([record.id for record in self.net.server.table if record.address == address])
            self.net.server.drain(frozenset({address}), self.net.now)

    @rule()
    def draining_ends(self) -> None:
        if self.net.server is not None:
            self.net.server.decisions.draining = False
            self.net.server.drain(frozenset(), self.net.now)

    @rule()
    def all_keys_are_rotated(self) -> None:
        if self.net.mode is not None and self.net.server is not None:
            self.wait_for_the_store()
            keyring = self.net.guard.keyring
            self.net.server.change_keys(keyring.rotate([record.key.id for record in keyring]), self.net.now)
            self.net.settle()

    @rule(host=hosts)
    def its_keys_are_revoked(self, host: Host) -> None:
        if self.net.mode is not None and self.net.server is not None:
            self.wait_for_the_store()
            keyring, server = self.net.guard.keyring, self.net.server
            self.meddled_with.add(host)
            ids = [record.key.id for record in keyring.of_host(host.agent.host_id)]
            server.change_keys(keyring.revoke(ids), self.net.now)
            self.take_back([record.id for record in server.table.of_host(host.agent.host_id)], Result.ADMINISTRATIVE)

    @rule(host=hosts)
    def it_is_forgiven(self, host: Host) -> None:
        """The operator forgets its keys; where hosts need one, he carries a new one there."""
        if self.net.mode is not None and self.net.server is not None:
            self.pardon(host)

    # The link and the clock

    @rule(profile=st.sampled_from(("good", "lossy", "late", "doubling")))
    def the_link_becomes(self, profile: str) -> None:
        dice = self.random
        copies, delays = {
            "good": ((1,), (LATENCY,)),
            "lossy": ((0, 0, 1, 1, 1), (LATENCY, 0.3)),
            "late": ((1,), (0.001, 0.3, 3.0, 20.0)),
            "doubling": ((0, 1, 2, 3), (0.001, LATENCY, 3.0)),
        }[profile]
        self.net.fate = lambda _: [dice.choice(delays) for _ in range(dice.choice(copies))]

    @rule(seconds=st.sampled_from((0.0, 0.02, 0.3, 2.0, 20.0, 80.0, 200.0)))
    def time_passes(self, seconds: float) -> None:
        self.net.run(seconds)

    # What must hold

    @invariant()
    def check(self) -> None:
        if not hasattr(self, "net"):
            return
        self.ports_have_one_owner()
        self.ports_have_one_user()
        self.promises_are_kept()
        self.freed_ports_rest()

    def ports_have_one_owner(self) -> None:
        for one, other in itertools.combinations(self.net.store.leases.values(), 2):
            assert not overlap(one, other), (one, other)

    def ports_have_one_user(self) -> None:
        now = self.net.now
        used = [
            (host, lease) for host in self.net.hosts.values() for lease in host.agent.leases if lease.expires_at > now
        ]
        for (one, lease), (other, another) in itertools.combinations(used, 2):
            assert one is other or not overlap(lease, another), (one.name, other.name, str(lease.ports))

    def promises_are_kept(self) -> None:
        for lease_id, (host_id, until) in tuple(self.net.promised.items()):
            record = self.net.store.leases.get(lease_id)
            if until <= self.net.now:
                del self.net.promised[lease_id]
            else:
                assert record is not None and record.host_id == host_id, f"lease {lease_id:x} was answered, and is gone"
                assert record.expires_at >= until - 1, f"lease {lease_id:x} was answered for longer"

    def freed_ports_rest(self) -> None:
        now, leases = self.net.now, self.net.store.leases
        self.freed = [(at, each) for at, each in self.freed if at + HOLD - SLACK > now]
        for record in leases.values():
            if record.id not in self.known:
                for at, former in self.freed:
                    rested = former.host_id == record.host_id or not overlap(former, record)
                    assert rested, f"{record.ports} were freed {now - at:.1f} s ago"
        self.freed += [(now, each) for each in self.known.values() if each.id not in leases]
        self.known = dict(leases)

    # What must come of it

    def teardown(self) -> None:
        """All becomes well, and all agree."""
        if not hasattr(self, "net"):
            return
        net = self.net
        net.commit_time = net.broken_until = 0.0
        net.fate = lambda _: [LATENCY]
        net.unplugged.clear()
        if net.server is None:
            net.start_server()
        self.draining_ends()
        hosts = list(net.hosts.values())
        for host in hosts:
            if host in self.meddled_with:
                self.pardon(host)
        net.run(400)
        for host in hosts:
            host.agent.resume(net.now)
        net.run(20)
        held = {lease.id: host for host in hosts for lease in host.agent.leases}
        assert held.keys() == net.store.leases.keys()
        for lease_id, record in net.store.leases.items():
            assert (record.host_id, record.host) == (held[lease_id].agent.host_id, held[lease_id].address)
        assert net.server is not None
        assert {record.id: record for record in net.server.table} == net.store.leases
        assert {hold.key for hold in net.server.table.holds} == net.store.holds.keys()
        if net.mode is not None:
            assert {record.key.id: record for record in net.guard.keyring} == net.store.keys
            active = [each.host_id for each in net.guard.keyring if each.state is KeyState.ACTIVE]
            assert len(set(active)) == len(active)
        for host in hosts:
            host.events.clear()
            ticket = host.agent.want(Want(1, Protocol.ICMP, Purpose.EXPLICIT), net.now)
            net.run(1)
            (answer,) = (each for each in host.events if isinstance(each, Granted | Refused) and each.ticket == ticket)
            if isinstance(answer, Granted):
                host.agent.release(answer.lease.id, net.now)
                net.run(1)
            else:
                assert answer.result in (Result.POOL_EXHAUSTED, Result.QUOTA_EXCEEDED), f"{host.name} is served again"

    # Steps of several rules

    def take_back(self, leases: list[int], reason: Result) -> None:
        assert self.net.server is not None
        self.net.forget(leases)
        self.net.server.invalidate(leases, reason, self.net.now)

    def wait_for_the_store(self) -> None:
        """Operators change keys when that can be written at once; else they are told, and try again."""
        self.net.commit_time = self.net.broken_until = 0.0
        self.net.run(2.0)

    def give_key(self, host: Host) -> None:
        """What an operator does where hosts do not agree on a key by themselves."""
        if self.net.mode is not Mode.STRICT:
            return
        if self.net.server is None:
            self.meddled_with.add(host)
        else:
            self.wait_for_the_store()
            record, changes = self.net.guard.keyring.make(host.name, None, self.net.now)
            self.net.server.change_keys(changes, self.net.now)
            self.net.settle()
            host.key = record.key
            self.net.reboot(host)

    def pardon(self, host: Host) -> None:
        """The host forgets its key, then the server does; leases stay where they are."""
        assert self.net.server is not None
        self.meddled_with.add(host)
        saved = host.agent.leases
        host.key = None
        self.net.reboot(host)
        self.wait_for_the_store()
        keyring = self.net.guard.keyring
        ids = {each.key.id for each in keyring if each.name == host.name or each.host_id == host.agent.host_id}
        self.net.server.change_keys(keyring.forget(sorted(ids)), self.net.now)
        self.net.settle()
        self.give_key(host)
        host.agent.adopt(saved, self.net.now)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(
    max_examples=int(EXAMPLES * LONG), stateful_step_count=STEPS, derandomize=LONG <= 1, print_blob=True
)
