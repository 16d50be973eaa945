"""What a lab does for its hosts, seen from its machines with nothing but commands."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from places import Place

from dnat.lab.topology import EXT

LISTEN = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(float(sys.argv[2]))
    s.bind(("0.0.0.0", int(sys.argv[1])))
    data, source = s.recvfrom(100)
    s.sendto(data.upper(), source)
    print(data.decode(), *source)
"""
ASK = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(float(sys.argv[3]))
    s.sendto(b"hello", (sys.argv[1], int(sys.argv[2])))
    data, source = s.recvfrom(100)
    print(data.decode(), *source)
"""


def show(place: Place, node: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(place.run(node, "dnatctl", "show", "-o", "json").out)
    return document


def ports(place: Place, node: str, purpose: str) -> range:
    """Its one lease for a purpose."""
    (lease,) = (lease for lease in show(place, node)["leases"] if lease["purpose"] == purpose)
    return range(lease["first"], lease["last"] + 1)


def seen_from(place: Place, node: str, *options: str) -> tuple[str, int]:
    """The address and port that an HTTP server outside sees."""
    address, port = place.run(node, "curl", "-sS", "-m", "30", *options, f"http://{EXT}/").out.strip().split(":")
    return address, int(port)


def converse(place: Place, server: str, port: int, client: str) -> tuple[list[str], list[str]]:
    """A datagram from the client to the server's leased port and back; what each saw: text, address, port."""
    patience = str(place.seconds / 2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(place.run, server, "python3", "-", str(port), patience, data=LISTEN)
        place.eventually(server, "sh", "-c", f"ss -Hlun | grep -q ':{port} '", what="somebody listens")
        external = str(place.topology.external)
        asked = place.run(client, "python3", "-", external, str(port), patience, data=ASK)
        return waiting.result().out.split(), asked.out.split()


@pytest.fixture
def leased(place: Place) -> Any:
    """Two ports that phone1 leases for the test."""
    lease = json.loads(place.run("phone1", "dnatctl", "request", "--ports", "2", "-o", "json").out)["lease"]
    yield lease["first"]
    place.run("phone1", "dnatctl", "release", str(lease["first"]))


@pytest.mark.parametrize("local", [None, 4001])
def test_the_outside_sees_the_shared_address(place: Place, local: int | None) -> None:
    options = ["--local-port", str(local)] if local else []
    address, port = seen_from(place, "phone1", *options)
    assert address == str(place.topology.external)
    assert port in ports(place, "phone1", "translated" if local else "ephemeral")


def test_the_router_knows_the_owners(place: Place) -> None:
    mine = ports(place, "phone1", "ephemeral")
    owners = json.loads(place.run("router", "dnatctl", "show", "owners", "-o", "json").out)
    assert str(mine[0]) in json.dumps(owners)


def test_transfers(place: Place) -> None:
    for options in ([], ["--local-port", "4004"]):
        command = ["curl", "-sS", "-m", str(int(place.seconds)), "-o", "/dev/null", "-w", "%{size_download}"]
        done = place.run("phone1", *command, *options, f"http://{EXT}/bytes/500000")
        assert done.out == "500000"


def test_ping(place: Place) -> None:
    assert "3 received" in place.run("phone1", "ping", "-c", "3", "-i", "0.3", "-W", "20", str(EXT)).out


def test_an_outsider_reaches_a_leased_port_unasked(place: Place, leased: int) -> None:
    served, asked = converse(place, "phone1", leased, "ext")
    assert served[:2] == ["hello", str(EXT)]
    assert asked == ["HELLO", str(place.topology.external), str(leased)]


@pytest.mark.phones(2)
def test_hosts_reach_each_other_at_the_shared_address(place: Place, leased: int) -> None:
    served, asked = converse(place, "phone1", leased, "phone2")
    assert served[:2] == ["hello", str(place.topology.external)]
    assert int(served[2]) in ports(place, "phone2", "ephemeral")
    assert asked == ["HELLO", str(place.topology.external), str(leased)]


def test_a_crash_of_the_daemon_cuts_nothing(place: Place) -> None:
    before = ports(place, "phone1", "ephemeral")
    process = re.search(r"process (\d+)", place.run("phone1", "dnatctl", "status").out)
    assert process
    place.run("phone1", "kill", "-9", process[1])
    address, port = seen_from(place, "phone1")
    assert (address, port in before) == (str(place.topology.external), True)
    place.run("phone1", "dnatctl", "up", seconds=4 * place.seconds)
    assert ports(place, "phone1", "ephemeral") == before


def test_reload_leaves_the_daemon_where_it_belongs(place: Place) -> None:
    before = ports(place, "phone1", "ephemeral")
    assert "serving ports" in place.run("router", "dnatctl", "reload", seconds=4 * place.seconds).out
    if place.installed:
        assert place.run("router", "systemctl", "is-active", "dnat").out == "active\n"
        other = place.run("router", "dnatctl", "reload", "--config", "/etc/hostname", code=2).err
        assert "dnat.service takes its configuration from /etc/dnat/dnat.toml" in other
    address, port = seen_from(place, "phone1")
    assert (address, port in before) == (str(place.topology.external), True)


def test_down_and_up(place: Place) -> None:
    """A host that is down is an ordinary device, which the router masquerades."""
    place.run("phone1", "dnatctl", "down")
    try:
        assert seen_from(place, "phone1")[0] == "203.0.113.1"
    finally:
        place.run("phone1", "dnatctl", "up", seconds=4 * place.seconds)
    assert seen_from(place, "phone1")[0] == str(place.topology.external)
