"""Whatever link, server and hosts do: two hosts never use the same port, and all agree in the end."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from pap_link import LAN, LATENCY, Host, Network, overlap

from dnat.leases.pool import Pool
from dnat.pap.guard import Mode
from dnat.pap.keyring import KeyState
from dnat.pap.messages import Result, Want
from dnat.pap.policy import Policy
from dnat.types import PortRange, Protocol, Purpose

POOL = Pool((LAN[1],), (PortRange(20480, 20495),), (PortRange(5060, 5061),))


class Chaos:
    """One run of random events, repeatable by its seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        mode = self.random.choice((None, *Mode))
        self.net = Network(POOL, Policy((LAN,), lifetime=60), mode)
        self.net.draw = lambda: self.random.getrandbits(64)  # type: ignore[method-assign]
        self.net.start_server()
        self.net.fate = self.fate
        self.net.on_change = self.no_port_is_used_twice
        self.hosts = [self.net.host(f"host{n}", n) for n in (11, 12, 13)]
        if mode is Mode.STRICT:
            self.carry_keys()

    def fate(self, _: bytes) -> list[float]:
        copies = self.random.choice((0, 1, 1, 1, 2))
        return [self.random.choice((0.001, 0.01, 0.3, 3.0)) for _ in range(copies)]

    def no_port_is_used_twice(self) -> None:
        used = [
            (host, lease)
            for host in self.net.hosts.values()
            for lease in host.agent.leases
            if lease.expires_at > self.net.now
        ]
        for (one, lease), (other, another) in itertools.combinations(used, 2):
            assert one is other or not overlap(lease, another), (one.name, other.name, str(lease.ports))

    def something(self) -> None:
        net, host = self.net, self.random.choice(self.hosts)
        match self.random.randrange(15):
            case 0 | 1 | 2:
                host.agent.want(self.any_want(), net.now)
            case 3 | 4 if host.agent.leases:
                host.agent.release(self.random.choice(host.agent.leases).id, net.now)
            case 5:
                net.stop_server(durable=self.random.random() < 0.5)
                net.at(net.now + self.random.uniform(0, 5), net.start_server)
            case 6 if net.server is not None and net.store.leases:
                net.server.invalidate([self.random.choice(list(net.store.leases))], Result.ADMINISTRATIVE, net.now)
            case 7:
                host.agent.resume(net.now)
            case 8:
                self.restart(host)
            case 9:
                net.commit_time = self.random.choice((0.0, 0.0, 0.2, 1.0))
            case 10:
                net.broken_until = net.now + self.random.uniform(0, 3)
            case 11:
                net.unplugged.add(host.name)
            case 12:
                net.unplugged.clear()
            case 13 if net.mode is not None and net.server is not None and net._committing is None:
                net.store.write_keys(net.guard.keyring.rotate(list(net.store.keys.keys() & self.known_keys())))
            case 14:
                host.agent.change_key(net.now)

    def carry_keys(self) -> None:
        for host in self.hosts:
            record, changes = self.net.guard.keyring.make(host.name, None, self.net.now)
            self.net.store.write_keys(changes)
            host.key = record.key
            self.net.reboot(host)

    def known_keys(self) -> set[int]:
        return {record.key.id for record in self.net.guard.keyring}

    def any_want(self) -> Want:
        protocol = self.random.choice((Protocol.ANY, Protocol.UDP, Protocol.TCP))
        if self.random.random() < 0.3:
            return Want(1, protocol, Purpose.EXPLICIT, first=5060)
        return Want(self.random.choice((1, 2, 4, 8)), protocol, Purpose.EPHEMERAL)

    def restart(self, host: Host) -> None:
        saved, epoch = host.agent.leases, host.agent.epoch_state
        self.net.reboot(host, skew=self.random.choice((0.0, 0.0, 10.0, -90.0, 1e6)))
        host.agent.adopt(saved, self.net.now, epoch)

    def calm(self) -> None:
        """Let the link and the machines be well, and everybody come to rest."""
        self.net.commit_time = self.net.broken_until = 0.0
        if self.net.server is None:
            self.net.start_server()
        self.net.unplugged.clear()
        self.net.fate = lambda _: [LATENCY]
        self.net.run(190)
        for host in self.hosts:
            host.agent.resume(self.net.now)
        self.net.run(20)


@given(st.integers(0, 2**32))
@settings(max_examples=200)
def test_no_port_is_used_twice_and_all_agree_in_the_end(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(40):
        chaos.something()
        chaos.net.run(chaos.random.choice((0, 0.02, 0.2, 2, 20, 80)))
    chaos.calm()
    held = {lease.id: host for host in chaos.hosts for lease in host.agent.leases}
    assert held.keys() == chaos.net.store.leases.keys()
    for lease_id, record in chaos.net.store.leases.items():
        assert record.host_id == held[lease_id].agent.host_id
        assert record.host == held[lease_id].address
    assert chaos.net.server is not None
    assert {record.id: record for record in chaos.net.server.table} == chaos.net.store.leases
    if chaos.net.mode is not None:
        keyring = chaos.net.guard.keyring
        assert {record.key.id: record for record in keyring} == chaos.net.store.keys
        active = [record.host_id for record in keyring if record.state is KeyState.ACTIVE]
        assert len(set(active)) == len(active)
    assert {hold.key for hold in chaos.net.server.table.holds} == chaos.net.store.holds.keys()
