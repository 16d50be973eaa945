"""The lab as a network, before any dnat daemon runs in it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from inside import ip, run

from dnat.errors import UsageError
from dnat.lab import builder
from dnat.lab.topology import Topology
from dnat.system import netns


@pytest.fixture
def lab(prefix: str) -> Iterator[Topology]:
    topology = Topology(prefix=prefix)
    builder.build(topology)
    yield topology
    builder.destroy(prefix)


def test_every_node_reaches_its_neighbours(lab: Topology) -> None:
    for node in ("phone1", "phone2", "sip"):
        run(lab.namespace(node), "ping", "-c1", "-W15", "10.66.0.1")
    run(lab.namespace("phone1"), "ping", "-c1", "-W15", "10.66.0.12")
    run(lab.namespace("router"), "ping", "-c1", "-W15", "203.0.113.2")
    assert "via 10.66.0.1 dev eth0 src 10.66.0.11" in ip(lab.namespace("phone1"), "route get 203.0.113.2")
    assert "via 203.0.113.1" in ip(lab.namespace("ext"), "route get 198.51.100.1")


def test_the_outside_does_not_know_the_lan(lab: Topology) -> None:
    run(lab.namespace("ext"), "ip", "route", "get", "198.51.100.1")
    assert "unreachable" in run(lab.namespace("ext"), "sh", "-c", "ip route get 10.66.0.11 2>&1", check=False)


def test_services_answer_as_soon_as_the_lab_stands(lab: Topology) -> None:
    router = lab.namespace("router")
    assert builder.services_running(lab)
    answer = run(router, "curl", "-sS", "--max-time", "20", "--local-port", "45678", "http://203.0.113.2/")
    assert answer == "203.0.113.1:45678\n"
    size = run(router, "curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{size_download}",
               "http://203.0.113.2/bytes/1000003")  # fmt: skip
    assert size == "1000003"
    code = run(router, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://203.0.113.2/nothing")
    assert code == "404"
    with netns.enter(router):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.create_connection(("203.0.113.2", 7), timeout=20)
    with udp, tcp:
        udp.settimeout(20)
        udp.sendto(b"one", ("203.0.113.2", 7))
        assert udp.recv(100) == b"one"
        tcp.sendall(b"two")
        assert tcp.recv(100) == b"two"


def test_the_router_finds_its_configuration(lab: Topology) -> None:
    text = Path("/etc/netns", lab.namespace("router"), "dnat/dnat.toml").read_text(encoding="utf-8")
    assert 'external_addresses = ["198.51.100.1"]' in text
    assert not Path("/etc/netns", lab.namespace("phone1")).exists()


def test_building_again_changes_nothing_and_another_shape_is_refused(lab: Topology) -> None:
    assert builder.find(lab.prefix) == lab
    assert builder.build(lab) is False
    with pytest.raises(UsageError, match="take it down first"):
        builder.build(Topology(prefix=lab.prefix, phones=3))
    assert builder.services_running(lab)


def test_destroy_leaves_nothing_behind(prefix: str) -> None:
    topology = Topology(prefix=prefix, own_address=True)
    other = Topology(prefix=f"{prefix}-x", phones=1)
    builder.build(topology)
    builder.build(other)
    try:
        phone = topology.namespace("phone1")
        instance = [Path("/run/dnat"), Path("/var/lib/dnat")]
        for parent in instance:
            (parent / phone).mkdir(parents=True)
            (parent / phone / "file").touch()
        # A program that ignores SIGTERM, as a stuck one would.
        script = "trap '' TERM; echo ready; while :; do sleep 1; done"
        stuck = netns.popen(["sh", "-c", script], phone, stdout=subprocess.PIPE, text=True)
        with stuck.stdout:
            assert stuck.stdout.readline() == "ready\n"
        services = int(Path("/run/dnat-lab", prefix, "services.pid").read_text())
        removed = builder.destroy(prefix)
        assert stuck.wait(timeout=20) == -9
        assert sorted(removed) == sorted(topology.namespaces)
        assert not Path(f"/proc/{services}").exists()
        left = [
            path
            for parent in ("/run/netns", "/etc/netns", "/run/dnat", "/var/lib/dnat", "/run/dnat-lab")
            if Path(parent).exists()
            for path in Path(parent).iterdir()
            if path.name.startswith(prefix) and not path.name.startswith(other.prefix)
        ]
        assert left == []
        assert builder.find(prefix) is None
        assert builder.destroy(prefix) == []
        assert builder.find(other.prefix) == other
        assert builder.services_running(other)
    finally:
        builder.destroy(prefix)
        builder.destroy(other.prefix)


def test_a_half_built_lab_is_replaced(prefix: str) -> None:
    topology = Topology(prefix=prefix, phones=1)
    try:
        netns.create(topology.namespace("router"))
        ip(topology.namespace("router"), "link add wan type bridge")
        Path("/run/netns", topology.namespace("ext")).touch()
        assert builder.build(topology) is True
        run(topology.namespace("phone1"), "ping", "-c1", "-W15", "10.66.0.1")
    finally:
        builder.destroy(prefix)


def test_many_phones_stand(prefix: str) -> None:
    topology = Topology(prefix=prefix, phones=20)
    try:
        builder.build(topology)
        run(topology.namespace("phone20"), "ping", "-c1", "-W15", "10.66.0.1")
    finally:
        builder.destroy(prefix)
