"""Fragments in any order, through real daemons and networks (RFC 4787, REQ-14)."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterable, Iterator, Sequence

import pytest
import raw
from nodes import SILENCE, Lab, Node, eventually
from scapy.layers.inet import IP, UDP, fragment
from scapy.packet import Packet, Raw

from dnat.system import netns

UDP_SOCKET = socket.SOCK_DGRAM
OUTSIDE = 7777
ORDERS = list(itertools.permutations(range(3)))
_identifications = itertools.count(random.randrange(1, 30000))


def datagram(source: tuple[str, int], target: tuple[str, int], words: bytes, size: int = 1480) -> list[Packet]:
    """A datagram in fragments of at most ``size`` octets each."""
    whole = IP(src=source[0], dst=target[0], id=next(_identifications)) / UDP(sport=source[1], dport=target[1])
    return [IP(bytes(part)) for part in fragment(whole / Raw(words), fragsize=size)]


def words(octets: int) -> bytes:
    return random.randbytes(octets)


def shuffled(packets: Sequence[Packet], order: Sequence[int]) -> list[Packet]:
    return [packets[place] for place in order]


@pytest.fixture
def port(lab: Lab) -> Iterator[int]:
    phone = lab["phone1"]
    lease = phone.request("--ports", "1")
    yield lease["first"]
    phone.dnatctl("release", str(lease["first"]))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_inbound_in_any_order(lab: Lab, port: int, order: tuple[int, ...]) -> None:
    said = words(4000)
    with lab["phone1"].socket(UDP_SOCKET, port) as phone:
        raw.send(lab["ext"], shuffled(datagram((lab.ext, OUTSIDE), (lab.external, port), said), order))
        assert phone.recvfrom(65536) == (said, (lab.ext, OUTSIDE))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_outbound_in_any_order(lab: Lab, port: int, order: tuple[int, ...]) -> None:
    said = words(4000)
    with lab["ext"].socket(UDP_SOCKET, OUTSIDE) as outside:
        raw.send(lab["phone1"], shuffled(datagram((lab.external, port), (lab.ext, OUTSIDE), said), order))
        assert outside.recvfrom(65536) == (said, (lab.external, port))


def test_the_longest_reversed_datagram_that_is_held(lab: Lab, port: int) -> None:
    said = words(17 * 512 - 8)
    with lab["phone1"].socket(UDP_SOCKET, port) as phone:
        parts = datagram((lab.ext, OUTSIDE), (lab.external, port), said, size=512)
        assert len(parts) == 17
        raw.send(lab["ext"], reversed(parts))
        assert phone.recvfrom(65536) == (said, (lab.ext, OUTSIDE))


def test_many_datagrams_through_each_other(lab: Lab, port: int) -> None:
    """Every one arrives whole, whatever came in between."""
    said = {words(2000) for _ in range(8)}
    parts = [part for one in said for part in datagram((lab.ext, OUTSIDE), (lab.external, port), one)]
    for seed in range(10):
        mixed = parts.copy()
        random.Random(seed).shuffle(mixed)
        for part in mixed:
            # Each round is other datagrams.
            part.id = (part.id + 500) % 65536
            del part.chksum
        with lab["phone1"].socket(UDP_SOCKET, port) as phone:
            raw.send(lab["ext"], mixed)
            assert {phone.recv(65536) for _ in said} == said


def test_a_reversed_ping(lab: Lab) -> None:
    """ping -s 3000, as a network that reorders shows it."""
    for seed in range(3):
        order = list(range(3))
        random.Random(seed).shuffle(order)
        said = words(3000)
        with lab["phone1"].socket(UDP_SOCKET, 0) as phone, lab["ext"].socket(UDP_SOCKET, OUTSIDE) as outside:
            phone.sendto(b"where am I?", (lab.ext, OUTSIDE))
            _, seen = outside.recvfrom(100)
            raw.send(lab["ext"], shuffled(datagram((lab.ext, OUTSIDE), seen, said), order))
            assert phone.recv(65536) == said


def test_what_is_held_goes_to_the_owner_only(lab: Lab, port: int) -> None:
    """Held fragments follow their own first one, not another's of the same source."""
    other = lab["phone2"].request("--ports", "1")["first"]
    mine, theirs = words(2500), words(2500)
    with lab["phone1"].socket(UDP_SOCKET, port) as one, lab["phone2"].socket(UDP_SOCKET, other) as two:
        left = datagram((lab.ext, OUTSIDE), (lab.external, port), mine)
        right = datagram((lab.ext, OUTSIDE), (lab.external, other), theirs)
        raw.send(lab["ext"], [left[1], right[1], right[0], left[0]])
        assert one.recv(65536) == mine
        assert two.recv(65536) == theirs
        for quiet in (one, two):
            quiet.settimeout(SILENCE)
            with pytest.raises(TimeoutError):
                quiet.recv(100)
    lab["phone2"].dnatctl("release", str(other))


def test_hairpin_reversed(lab: Lab, port: int) -> None:
    """Between hosts behind one address, as a LAN device of its own would send them."""
    device, router = lab["sip"], lab["router"]
    source = device.request("--ports", "1")["first"]
    said = words(2500)
    before = router.counter("router_fragment_released")
    with lab["phone1"].socket(UDP_SOCKET, port) as phone:
        parts = datagram((lab.external, source), (lab.external, port), said)
        _send_to_router(device, lab, reversed(parts))
        assert phone.recvfrom(65536) == (said, (lab.external, source))
    assert router.counter("router_fragment_released") == before + 1
    device.dnatctl("release", str(source))


def _send_to_router(node: Node, lab: Lab, packets: Iterable[Packet]) -> None:
    """As frames, past the loopback of the sender."""
    mac = eventually(lambda: _mac_of_router(node), "the router's link address")
    own = _word_after("link/ether", node.run("ip", "link", "show", "eth0").stdout)
    assert own
    with netns.enter(node.namespace):
        frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with frames:
        frames.bind(("eth0", 0x0800))
        for packet in packets:
            header = bytes.fromhex((mac + own).replace(":", "")) + b"\x08\x00"
            frames.send(header + bytes(packet))


def _mac_of_router(node: Node) -> str | None:
    node.run("ping", "-c1", "-W15", "10.66.0.1", code=None)
    return _word_after("lladdr", node.run("ip", "neigh", "show", "10.66.0.1").stdout)


def _word_after(word: str, text: str) -> str | None:
    found = text.split()
    return found[found.index(word) + 1] if word in found else None


def test_a_flood_of_early_fragments_hurts_nobody_else(lab: Lab, port: int) -> None:
    """One source fills its own room; another's datagram waits in its own, and what is in order passes."""
    router, ext = lab["router"], lab["ext"]
    said = words(2500)
    flood = [
        IP(src="192.0.2.66", dst=lab.external, id=number, proto=17, flags="MF", frag=185) / Raw(b"x" * 1000)
        for number in range(300)
    ]
    before = router.counter("drop_fragment_no_room")
    with lab["phone1"].socket(UDP_SOCKET, port) as phone:
        raw.send(ext, flood)
        eventually(lambda: router.counter("drop_fragment_no_room") >= before + 250, "the flood is bounded")
        for order in ((0, 1), (1, 0)):
            raw.send(ext, shuffled(datagram((lab.ext, OUTSIDE), (lab.external, port), said), order))
            assert phone.recvfrom(65536) == (said, (lab.ext, OUTSIDE))
