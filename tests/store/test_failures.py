"""Members of the cluster die, one, the leader, all: servers wait, say STORE-FAILED, and lose nothing."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from etcd_cluster import EtcdCluster
from servers import Host, serving
from test_contract import POOL, RECORD
from waiting import eventually

from dnat.leases.records import DropLease, PutLease
from dnat.store import StoreConflict, StoreError
from dnat.store.etcd import store as store_module
from dnat.store.etcd.client import PATIENCE_SECONDS, Cluster, EtcdClient
from dnat.store.etcd.store import EtcdStore


def test_without_its_leader_the_cluster_serves_on(mortal_etcd: EtcdCluster, prefix: str, tmp_path: Path) -> None:
    async def story() -> None:
        leader = await mortal_etcd.find_leader()
        async with serving(mortal_etcd.cluster(prefix), 1) as server, Host(11, (1,), tmp_path) as phone:
            assert await phone.want(4) is not None
            mortal_etcd.kill(leader)
            assert await phone.want(4) is not None, "another member leads"
            assert len(server.records()) == 2
        mortal_etcd.start(leader)

    asyncio.run(story())
    mortal_etcd.wait()


def test_without_any_member_hosts_are_told_and_nothing_is_lost(
    mortal_etcd: EtcdCluster, prefix: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with serving(mortal_etcd.cluster(prefix), 1) as server, Host(11, (1,), tmp_path) as phone:
            lease = await phone.want(4)
            mortal_etcd.kill()
            assert await phone.want(4) is None
            assert server.counters["store-failed"] >= 1
            mortal_etcd.start()
            await eventually(lambda: len(server.records()) == 1, "the table is what the store has")
            for _ in range(100):
                if (other := await phone.want(4)) is not None:
                    break
            assert lease is not None and other is not None
            assert {each.id for each in server.records()} == {lease.id, other.id}

    asyncio.run(story())
    mortal_etcd.wait()


def test_a_server_that_comes_back_knows_every_lease(cluster: Cluster, tmp_path: Path) -> None:
    async def story() -> None:
        async with Host(11, (1,), tmp_path) as phone:
            async with serving(cluster, 1) as server:
                await phone.want(4)
                await phone.want(4)
                before = {each.id: each for each in server.records()}
            async with serving(cluster, 1) as server:
                assert {each.id: each for each in server.records()} == before
                assert len(before) == 2

    asyncio.run(story())


def test_what_rests_on_something_outdated_is_not_written(cluster: Cluster) -> None:
    async def story() -> None:
        one, two = EtcdStore(cluster, POOL), EtcdStore(cluster, POOL)
        await one.open(1.0)
        await two.open(1.0)
        heard = []
        two.foreign(heard.extend)
        two._busy = True  # as if it had not heard yet
        await one.transact([PutLease(RECORD)])
        with pytest.raises(StoreConflict):
            await two.transact([PutLease(replace(RECORD, id=1))])
        await two.catch_up()
        assert two.lease(RECORD.id) == RECORD and two.lease(1) is None
        assert heard == [PutLease(RECORD)]
        await two.transact([DropLease(RECORD.id)])
        await eventually(lambda: one.lease(RECORD.id) is None, "the other knows")
        await one.close()
        await two.close()

    asyncio.run(story())


def test_a_transaction_whose_answer_was_lost_is_not_made_twice(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is repeated as after a broken connection: the second attempt finds its own mark."""

    async def story() -> None:
        store = EtcdStore(cluster, POOL)
        await store.open(1.0)
        transact = store._client.transact

        async def twice(*arguments: object, **options: object) -> object:
            await transact(*arguments, **options)
            return await transact(*arguments, **options)

        monkeypatch.setattr(store._client, "transact", twice)
        await store.transact([PutLease(RECORD)])
        await store.transact([PutLease(replace(RECORD, expires_at=9.0))])
        monkeypatch.undo()
        await store.transact([PutLease(replace(RECORD, expires_at=10.0))])
        other = EtcdStore(cluster, POOL)
        assert (await other.open(2.0)).records == (replace(RECORD, expires_at=10.0),)
        await store.close()
        await other.close()

    asyncio.run(story())


def test_unreadable_values_are_named_and_left_alone(cluster: Cluster) -> None:
    async def story() -> None:
        store = EtcdStore(cluster, POOL)
        await store.open(1.0)
        key = cluster.path("table", "leases", "0000000000000007")
        await store._client.transact([], [store_module.put(key, b"nonsense")])
        await store.close()
        with pytest.raises(StoreError, match=f"unreadable under {key.decode()}"):
            await EtcdStore(cluster, POOL).open(2.0)

    asyncio.run(story())


def test_over_tls_with_a_certificate_of_its_own(tmp_path: Path, prefix: str) -> None:
    """One member that demands certificates: with one the store works, without it is refused."""
    assert ssl.HAS_TLSv1_2
    commands = """
        req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem
        req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=dnat -keyout dnat.key -out dnat.csr
        x509 -req -in dnat.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out dnat.pem
    """
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for command in commands.strip().splitlines():
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    etcd = EtcdCluster(tmp_path / "etcd", tls=tmp_path)
    etcd.start(0)
    try:
        plain = etcd.cluster(prefix, (0,))
        certified = Cluster(plain.endpoints, prefix, tmp_path / "ca.pem", tmp_path / "dnat.pem", tmp_path / "dnat.key")
        etcd.wait(certified)

        async def story() -> None:
            store = EtcdStore(certified, POOL)
            await store.open(1.0)
            await store.transact([PutLease(RECORD)])
            await store.close()
            for stranger in (plain, Cluster(plain.endpoints, prefix, tmp_path / "ca.pem")):
                with pytest.raises(StoreError, match="does not answer"):
                    await EtcdStore(stranger, POOL).open(1.0)

        asyncio.run(story())
    finally:
        etcd.kill()


def test_a_watch_that_is_never_answered_is_given_up() -> None:
    """As that which a member took just before it died, on the connection to the one that came in its place."""

    async def silent(questions: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
        async for _ in questions:
            await asyncio.Event().wait()
        yield b""

    async def story() -> None:
        server = grpc.aio.server()
        watch = grpc.stream_stream_rpc_method_handler(silent)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("etcdserverpb.Watch", {"Watch": watch}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        client = EtcdClient(Cluster((f"127.0.0.1:{port}",)))
        try:
            with pytest.raises(StoreError, match="ended the watch"):
                await asyncio.wait_for(anext(client.watch(b"/dnat/", 1)), 10 * PATIENCE_SECONDS)
        finally:
            await client.close()
            await server.stop(None)

    asyncio.run(story())
