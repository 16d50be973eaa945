"""Two port servers that serve at once: what one grants the other never does, and each knows what the other did."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
from servers import Host, address, serving
from waiting import eventually

from dnat.pap.auth import Key
from dnat.pap.keyring import DropKey, KeyRecord, KeyState, PutKey
from dnat.pap.messages import Result
from dnat.store import StoreError
from dnat.store.etcd.client import Cluster
from dnat.store.etcd.keys import EtcdKeyStore
from dnat.types import PortRange


def test_they_know_of_each_others_leases(cluster: Cluster, tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            serving(cluster, 1) as one,
            serving(cluster, 2) as two,
            Host(11, (1,), tmp_path) as phone,
            Host(12, (2,), tmp_path) as other,
        ):
            lease = await phone.want(1, 5060)
            assert lease is not None
            await eventually(lambda: len(two.records()) == 1, "the other server knows the lease")
            assert await other.want(1, 5060) is None, "it is taken"
            assert two.counters["want-port-taken"] == 1
            await phone.release(lease)
            await eventually(lambda: not two.records(), "the other server knows that it ended")
            assert await other.want(1, 5060) is None, "it is on hold"
            assert two.counters["want-port-held"] == 1
            assert not one.records()

    asyncio.run(story())


def test_a_host_goes_on_with_the_other_server(cluster: Cluster, tmp_path: Path) -> None:
    async def story() -> None:
        async with Host(11, (1, 2), tmp_path) as phone, serving(cluster, 2) as two:
            async with serving(cluster, 1):
                lease = await phone.want(16)
                assert lease is not None
            await phone.release(lease)
            assert not two.records(), "the server that is left took the lease back"
            assert phone.leasing.server == address(2)
            again = await phone.want(16)
            assert again is not None and again.ports == lease.ports, "and knows what the host had"

    asyncio.run(story())


def test_a_server_that_is_drained_leaves_new_ports_to_the_other(cluster: Cluster, tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(cluster, 1) as one, serving(cluster, 2) as two, Host(11, (1, 2), tmp_path) as phone:
            await one.drain(frozenset())
            assert await phone.want(16) is not None
            assert (one.counters["want-shutting-down"], two.counters["want-success"]) == (1, 1)
            await two.drain(frozenset())
            assert await phone.want(16) is None, "each was asked once"
            assert (one.counters["want-shutting-down"], two.counters["want-shutting-down"]) == (2, 1)

    asyncio.run(story())


def test_a_lease_taken_back_by_the_other_server_reaches_its_host(cluster: Cluster, tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(cluster, 1), serving(cluster, 2) as two, Host(11, (1, 2), tmp_path) as phone:
            lease = await phone.want(16)
            assert lease is not None
            await eventually(lambda: len(two.records()) == 1, "the other server knows the lease")
            await two.invalidate([lease.id], Result.ADMINISTRATIVE)
            await eventually(lambda: not phone.ports, "the host has heard")
            await eventually(lambda: two._core._invalidations.next_deadline is None, "its word has arrived")

    asyncio.run(story())


def test_a_key_agreed_with_one_server_is_good_at_the_other(cluster: Cluster, tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            serving(cluster, 1, authentication="tofu") as one,
            serving(cluster, 2, authentication="tofu") as two,
            Host(11, (1, 2), tmp_path, key=True) as phone,
        ):
            assert await phone.want(16) is not None
            key = phone.leasing.key
            assert key is not None

            def state(server: Any) -> str | None:
                record = server.keyring.get(key.id)
                return record.state.value if record is not None else None

            await eventually(lambda: state(two) == "active", "the other server knows the key")
            phone.leasing._ask_another()
            assert await phone.want(16) is not None
            assert two.counters["want-success"] == 1
            await two.change_keys(two.keyring.revoke([key.id]))
            await eventually(lambda: state(one) == "revoked", "the first server knows that it is revoked")

    asyncio.run(story())


def test_both_may_end_a_key_whose_time_has_come(cluster: Cluster) -> None:
    """Each sees the end of a replaced key at the same moment; neither may take the other's act for a failed store."""

    def key(number: int, state: KeyState) -> PutKey:
        return PutKey(KeyRecord(Key(number, bytes(32)), "phone", bytes(16), state, True, 1.0))

    async def story() -> None:
        one, two = EtcdKeyStore(cluster), EtcdKeyStore(cluster)
        await one.open()
        await one.transact([key(number, KeyState.RETIRING) for number in (1, 2, 3)])
        await two.open()
        await asyncio.gather(
            one.transact([DropKey(1), DropKey(2), key(4, KeyState.ACTIVE)]),
            two.transact([DropKey(2), DropKey(1), key(4, KeyState.ACTIVE), key(5, KeyState.NEW)]),
        )
        assert sorted(each.key.id for each in (await one.open()).records) == [3, 4, 5]
        outcomes = await asyncio.gather(
            one.transact([DropKey(3)]), two.transact([key(3, KeyState.REVOKED)]), return_exceptions=True
        )
        assert [isinstance(each, StoreError) for each in outcomes].count(True) == 1, "only one of them can be first"
        revoked = [each.state for each in (await one.open()).records if each.key.id == 3]
        assert revoked == ([] if outcomes[0] is None else [KeyState.REVOKED])
        await one.close()
        await two.close()

    asyncio.run(story())


def test_all_keys_can_be_rotated_at_once(cluster: Cluster) -> None:
    """More keys than etcd takes in one transaction: those of many hosts that come back together, too."""

    async def story() -> None:
        async with serving(cluster, 1) as one, serving(cluster, 2) as two:
            active = [
                PutKey(KeyRecord(Key(n, bytes(32)), f"phone{n}", n.to_bytes(16), KeyState.ACTIVE, True, 1.0))
                for n in range(1, 301)
            ]
            one.keyring.follow(active)
            await one.change_keys(tuple(active))
            await one.change_keys(one.keyring.rotate(range(1, 301)))
            await eventually(
                lambda: sum(each.replace for each in two.keyring) == 300, "the other server asks for new keys, too"
            )

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(2))
def test_no_port_is_ever_granted_twice(cluster: Cluster, tmp_path: Path, seed: int) -> None:
    """Hosts of both servers fight for 48 ports, by number and by count, and give them back all the time."""
    draw = random.Random(seed)
    held: dict[int, set[int]] = {}

    def take(host: int, ports: PortRange) -> None:
        taken = set(range(ports.first, ports.last + 1))
        for other, theirs in held.items():
            assert not taken & theirs, f"host {host} and host {other} both have {sorted(taken & theirs)}"
        held.setdefault(host, set()).update(taken)

    async def fight(host: Host, number: int) -> int:
        granted = 0
        for _ in range(25):
            count = draw.choice([1, 2, 4, 8, 16])
            first = 20000 + draw.randrange(48 - count + 1) if draw.random() < 0.5 else None
            lease = await host.want(count, first)
            if lease is None:
                continue
            granted += 1
            take(number, lease.ports)
            if draw.random() < 0.3:
                await asyncio.sleep(0.01 * draw.random())
            held[number] -= set(range(lease.ports.first, lease.ports.last + 1))
            await host.release(lease)
        return granted

    async def story() -> None:
        settings = {"ports": ["20000-20047"], "specific_ports": ["20000-20047"], "hold_down": 0}
        async with (
            serving(cluster, 1, **settings) as one,
            serving(cluster, 2, **settings) as two,
            contextlib.AsyncExitStack() as stack,
        ):
            hosts = [
                await stack.enter_async_context(Host(number, (1 + number % 2,), tmp_path)) for number in range(11, 19)
            ]
            granted = await asyncio.gather(*(fight(host, number) for number, host in enumerate(hosts)))
            assert sum(granted) > 20
            again = one.counters["decided-again"] + two.counters["decided-again"]
            assert again > 0, "the servers never met"
            await eventually(lambda: not one.records() and not two.records(), "all is given back, both know it")

    asyncio.run(story())
