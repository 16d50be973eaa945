"""Fixtures: a cluster for all tests, a key prefix for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd_cluster import EtcdCluster

from dnat.store.etcd.client import Cluster

_numbers = itertools.count(1)


def _three(directory: Path) -> Iterator[EtcdCluster]:
    etcd = EtcdCluster(directory)
    etcd.start()
    try:
        etcd.wait()
        yield etcd
    finally:
        etcd.kill()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """Three members that all tests share, and that none harms."""
    yield from _three(tmp_path_factory.mktemp("etcd"))


@pytest.fixture(scope="session")
def mortal_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """Three members that tests kill, and start again."""
    yield from _three(tmp_path_factory.mktemp("mortal-etcd"))


@pytest.fixture
def prefix() -> str:
    """What the keys of this test alone begin with."""
    return f"/test-{next(_numbers)}/"


@pytest.fixture
def cluster(etcd: EtcdCluster, prefix: str) -> Cluster:
    return etcd.cluster(prefix)
