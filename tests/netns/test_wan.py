"""A WAN without link addresses, as PPP makes it, whose address is the shared one and changes with each session."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from inside import ip
from nodes import Lab, eventually
from tun_wire import TunWire

from dnat.lab import builder, control
from dnat.lab.topology import Topology
from dnat.system.paths import NETNS_CONFIG_DIRECTORY

UDP = socket.SOCK_DGRAM
ECHO = 7
REPAIR_SECONDS = 60.0
PPPOE_MTU = 1492


class Session:
    """A point-to-point link between the router and its provider."""

    def __init__(self, lab: Lab, address: str) -> None:
        router, ext = lab["router"].namespace, lab["ext"].namespace
        self._wire = TunWire(((router, "ppp0"), (ext, "eth0")), offloads=True)
        ip(ext, f"addr add {lab.ext} peer {address} dev eth0; link set eth0 mtu {PPPOE_MTU} up")
        ip(router, f"addr add {address} peer {lab.ext} dev ppp0; link set ppp0 mtu {PPPOE_MTU} up")
        ip(router, "route replace default dev ppp0")

    def end(self) -> None:
        """The interfaces go."""
        self._wire.close()


@pytest.fixture
def dialled(prefix: str) -> Iterator[tuple[Lab, list[Session]]]:
    """A lab with one phone, whose router shares whatever address its provider gives it."""
    topology = Topology(prefix=prefix, phones=1, own_address=True)
    sessions: list[Session] = []
    try:
        builder.build(topology)
        lab = Lab(topology)
        ip(topology.namespace("router"), "link del wan")
        sessions.append(Session(lab, "203.0.113.1"))
        path = Path(NETNS_CONFIG_DIRECTORY) / topology.namespace("router") / "dnat" / "dnat.toml"
        text = path.read_text().replace('external_addresses = ["203.0.113.1"]', 'external_addresses = ["wan"]')
        path.write_text(text.replace('wan = "wan"', 'wan = "ppp0"'))
        control.up(topology, lambda _: None)
        yield lab, sessions
    finally:
        for session in sessions:
            session.end()
        builder.destroy(prefix)


def test_a_phone_behind_a_point_to_point_link_and_its_next_address(dialled: tuple[Lab, list[Session]]) -> None:
    lab, sessions = dialled
    phone, router = lab["phone1"], lab["router"]
    assert router.show()["router"]["path"] == "tc"
    assert seen_as(lab) == "203.0.113.1"
    assert len(phone.run("curl", "-sS", "-m", "30", f"http://{lab.ext}/bytes/3000000").stdout) == 3_000_000
    phone.run("ping", "-c", "1", "-W", "15", "-s", "4000", lab.ext)
    assert "10.66.0.1" in phone.run("ping", "-c", "1", "-W", "15", "-t", "1", lab.ext, code=1).stdout
    assert "which needs no gateway" in router.dnatctl("doctor", code=None).stdout
    before = router.counter("router_in")
    # From a port that is not the phone's own: translated.
    with phone.socket(UDP, 4000) as sock:
        for size in (10, 1400, 3000):
            sock.sendto(b"x" * size, (lab.ext, ECHO))
            assert len(sock.recv(5000)) == size
    assert router.counter("router_in") > before

    # The provider ends the session, and the next one has another address.
    sessions.pop().end()
    sessions.append(Session(lab, "203.0.113.77"))
    eventually(lambda: seen_as(lab) == "203.0.113.77", "the phone speaks from the new address", REPAIR_SECONDS)
    assert phone.show()["external_addresses"] == ["203.0.113.77"]
    assert "203.0.113.1/32" not in phone.run("ip", "addr", "show", "lo").stdout
    assert router.dnatctl("down").stderr == ""
    assert phone.dnatctl("down").stderr == ""


def seen_as(lab: Lab) -> str:
    """The address that the outside sees of the phone; empty if it does not."""
    said = lab["phone1"].run("curl", "-sS", "-m", "3", f"http://{lab.ext}/", code=None).stdout
    return str(said).partition(":")[0]
