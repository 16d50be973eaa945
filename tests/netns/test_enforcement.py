"""Nobody uses what is another's: seen from the wire, the store and the offender."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import raw
from nodes import SILENCE, Lab, Node, eventually
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from dnat.dataplane import abi
from dnat.system import netns

UDP_SOCKET = socket.SOCK_DGRAM
OUTSIDE = 7600


def send_frames(node: Node, lab: Lab, packets: Iterable[Packet], source: str | None = None) -> None:
    """To the router, past the node's own data plane: on another protocol's queue, which no program looks at."""
    router = _mac(lab["router"], "lan")
    own = source or _mac(node, "eth0")
    with netns.enter(node.namespace):
        frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with frames:
        # Straight to the driver, as an attacker's machine would.
        frames.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        frames.bind(("eth0", 0))
        addresses = bytes.fromhex((router + own).replace(":", ""))
        for packet in packets:
            tagged = isinstance(packet, Dot1Q | Dot1AD)
            frames.send(addresses + (b"" if tagged else b"\x08\x00") + bytes(_typed(packet) if tagged else packet))


def _typed(tagged: Packet) -> Packet:
    """With the type of its tag in front."""
    return Raw(bytes(Ether() / tagged)[12:])


_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20


def _mac(node: Node, interface: str) -> str:
    words = node.run("ip", "link", "show", interface).stdout.split()
    return words[words.index("link/ether") + 1]


@contextlib.contextmanager
def warnings(node: Node) -> Iterator[Callable[[], int]]:
    """Gives a function that counts the PAP INVALIDATEs that have come so far."""
    with netns.enter(node.namespace):
        frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    came = []

    def count() -> int:
        while True:
            try:
                packet = Ether(frames.recv(2000))
            except BlockingIOError:
                return len(came)
            if UDP in packet and packet[UDP].dport == 5728 and bytes(packet[UDP].payload)[1] == 2:
                came.append(packet)

    with frames:
        frames.bind(("eth0", 0x0800))
        frames.setblocking(False)
        yield count


def silent(sock: socket.socket) -> None:
    sock.settimeout(SILENCE)
    with pytest.raises(TimeoutError):
        sock.recv(100)


def test_a_thief_is_stopped_told_and_goes_on_with_its_own(lab: Lab) -> None:
    """The router drops, the server warns, the thief's own leases stay."""
    victim, thief, router = lab["phone1"], lab["phone2"], lab["router"]
    stolen = victim.ports("ephemeral").first
    own = thief.ports("ephemeral")
    before = router.counter("drop_not_owner")
    with lab["ext"].socket(UDP_SOCKET, OUTSIDE) as outside, warnings(thief) as warned:
        packet = IP(src=lab.external, dst=lab.ext) / UDP(sport=stolen, dport=OUTSIDE) / Raw(b"stolen")
        send_frames(thief, lab, [packet])
        silent(outside)
        assert router.counter("drop_not_owner") == before + 1
        eventually(lambda: warned() >= 1, "the thief is warned")
        assert thief.ports("ephemeral") == own
        outside.settimeout(20)
        with thief.socket(UDP_SOCKET) as sock:
            sock.sendto(b"honest", (lab.ext, OUTSIDE))
            assert outside.recv(100) == b"honest"


def test_another_link_address_is_another_host(lab: Lab) -> None:
    """The LAN address in PAP says who owns a port, the link address says who sends."""
    victim, thief, router = lab["phone1"], lab["phone2"], lab["router"]
    port = victim.ports("ephemeral").first
    packet = IP(src=lab.external, dst=lab.ext) / UDP(sport=port, dport=OUTSIDE) / Raw(b"whose?")
    before = router.counter("drop_not_owner")
    with lab["ext"].socket(UDP_SOCKET, OUTSIDE) as outside:
        send_frames(thief, lab, [packet], source="02:00:00:00:00:99")
        silent(outside)
    assert router.counter("drop_not_owner") == before + 1


def test_a_flood_is_reported_within_limits(lab: Lab) -> None:
    """Twenty reports a second at most reach the daemon, and the server goes on serving."""
    victim, thief, router = lab["phone1"], lab["phone2"], lab["router"]
    port = victim.ports("ephemeral").first
    packet = IP(src=lab.external, dst=lab.ext) / UDP(sport=port, dport=OUTSIDE) / Raw(b"flood")
    before = {name: router.counter(name) for name in ("drop_not_owner", "router_offence_unreported")}
    reported = router.show()["pap"]["server"].get("offence", 0)
    start = time.monotonic()
    with warnings(thief) as warned:
        send_frames(thief, lab, [packet] * 3000)
        eventually(lambda: router.counter("drop_not_owner") >= before["drop_not_owner"] + 3000, "all are dropped")
        eventually(lambda: router.show()["pap"]["server"].get("offence", 0) > reported, "some are reported")
        seconds = time.monotonic() - start + 2
        assert router.show()["pap"]["server"]["offence"] - reported <= seconds * abi.OFFENCES_PER_SECOND
        assert warned() <= seconds
    assert router.counter("router_offence_unreported") >= before["router_offence_unreported"] + 2500
    lease = victim.request("--ports", "1")
    victim.dnatctl("release", str(lease["first"]))


def _cloaks(ends: dict[str, str], port: int, to: int) -> Iterator[tuple[str, list[Packet]]]:
    """Ways to carry a packet past a guard who looks for plain ones."""

    def ip(**fields: Any) -> IP:
        return IP(**ends, **fields)

    def tags(count: int) -> Packet:
        tagged = stolen
        for _ in range(count):
            tagged = Dot1Q(vlan=0, prio=5) / tagged
        return tagged

    udp, words = UDP(sport=port, dport=to), Raw(b"stolen")
    stolen = ip(id=1) / udp / words
    first, later = bytes(UDP(sport=port, dport=to, len=40, chksum=0)), Raw(b"stolen  stolen  ")
    yield "plain", [stolen]
    yield "a priority", [tags(1)]
    yield "two priorities", [tags(2)]
    yield "seven priorities", [tags(7)]
    yield "a provider's priority", [Dot1AD(vlan=0) / stolen]
    yield "options", [ip(options=[IPOption(b"\x94\x04\0\0")]) / udp / words]
    yield "a loose source route", [ip(options=[IPOption(b"\x83\x07\x04\xcb\x00\x71\x02\x00")]) / udp / words]
    yield (
        "fragments",
        [ip(proto=17, id=76, flags="MF") / Raw(first + bytes(later)), ip(proto=17, id=76, frag=3) / later],
    )
    early = ip(proto=17, id=77, frag=1) / later
    yield "the later fragment first", [early, ip(proto=17, id=77, flags="MF") / Raw(first)]
    yield "longer than it says", [Raw(bytes(stolen) + b"trailer")]
    yield "a wrong checksum", [Raw(bytes(stolen)[:10] + b"\xde\xad" + bytes(stolen)[12:])]
    yield (
        "an error about it",
        [
            ip()
            / ICMP(type=3, code=3)
            / Raw(bytes(IP(src=ends["dst"], dst=ends["src"]) / UDP(sport=to, dport=port)) + b"stolen")
        ],
    )
    yield "a ping", [ip() / ICMP(id=port) / words]
    yield "UDP-Lite", [ip(proto=136) / Raw(bytes(udp) + b"stolen")]
    yield "DCCP", [ip(proto=33) / Raw(first + b"stolen")]
    yield "no ports", [ip(proto=47) / Raw(b"stolen")]


@pytest.mark.parametrize("who", ["the thief", "nobody", "the thief in the victim's coat"])
def test_no_cloak_hides_a_thief(lab: Lab, who: str) -> None:
    """Tags, options, fragments: what is sent from a port of somebody else never leaves, to the outside or to hosts."""
    victim, thief = lab["phone1"], lab["phone2"]
    ports, own = victim.ports("ephemeral"), thief.ports("ephemeral").last
    # Whose link address is on the frame has to be whose port is in it.
    stolen = own if "coat" in who else ports.first
    sources = {"the thief": None, "nobody": "02:00:00:00:00:99"}
    source = sources.get(who, _mac(victim, "eth0"))
    targets = ((lab.ext, OUTSIDE), (lab.external, ports.last))
    with listening(lab["ext"]) as outside, listening(victim) as inside:
        for destination, port in targets:
            for _, packets in _cloaks({"src": lab.external, "dst": destination}, stolen, port):
                send_frames(thief, lab, packets, source=source)
        # The switch has to learn again where the victim is.
        victim.run("ping", "-c", "1", "-W", "15", "10.66.0.1")
        # What comes after all of them, and is honest.
        for destination, port in targets:
            honest = IP(src=lab.external, dst=destination) / UDP(sport=own, dport=port) / Raw(b"honest")
            send_frames(thief, lab, [honest])
        for seen in (outside, inside):
            assert [Ether(frame) for frame in until(seen, b"honest") if b"stolen" in frame] == []


@contextlib.contextmanager
def listening(node: Node) -> Iterator[socket.socket]:
    """All that arrives at a node's interface."""
    with netns.enter(node.namespace):
        seen = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with seen:
        seen.bind(("eth0", 3))
        seen.settimeout(20)
        yield seen


def until(seen: socket.socket, words: bytes) -> list[bytes]:
    """Arriving frames up to that with these words, and it."""
    frames = []
    while not frames or words not in frames[-1]:
        frame, (*_, kind, _, _) = seen.recvfrom(3000)
        if kind != socket.PACKET_OUTGOING:
            frames.append(frame)
    return frames


FOREIGN = ["10.66.0.11", "10.66.0.1", "EXTERNAL"]


@pytest.mark.parametrize("source", FOREIGN)
def test_nobody_outside_speaks_with_an_address_of_this_side(lab: Lab, source: str) -> None:
    phone, router = lab["phone1"], lab["router"]
    port = phone.ports("ephemeral").first
    before = router.counter("drop_spoofed")
    source = lab.external if source == "EXTERNAL" else source
    with phone.socket(UDP_SOCKET, port) as sock:
        packet = IP(src=source, dst=lab.external) / UDP(sport=OUTSIDE, dport=port) / Raw(b"from within?")
        _from_outside(lab, [packet])
        eventually(lambda: router.counter("drop_spoofed") == before + 1, "it is dropped and counted")
        silent(sock)


def _from_outside(lab: Lab, packets: Iterable[Packet]) -> None:
    ext = lab["ext"]
    header = bytes.fromhex((_mac(lab["router"], "wan") + _mac(ext, "eth0")).replace(":", "")) + b"\x08\x00"
    with netns.enter(ext.namespace):
        frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with frames:
        frames.bind(("eth0", 0))
        for packet in packets:
            frames.send(header + bytes(packet))


def test_a_host_receives_nothing_at_ports_of_others(lab: Lab) -> None:
    """Even listening at a port of another host yields none of its packets, from any side."""
    victim, thief = lab["phone1"], lab["phone2"]
    port = victim.request("--ports", "1")["first"]
    with victim.socket(UDP_SOCKET, port) as owner, thief.socket(UDP_SOCKET, port) as spy:
        with lab["ext"].socket(UDP_SOCKET) as outside, lab["sip"].socket(UDP_SOCKET) as neighbour:
            outside.sendto(b"from outside", (lab.external, port))
            assert owner.recv(100) == b"from outside"
            neighbour.sendto(b"from the LAN", (lab.external, port))
            assert owner.recv(100) == b"from the LAN"
        quoted = IP(src=lab.external, dst=lab.ext) / UDP(sport=port, dport=9)
        raw.send(lab["ext"], [IP(src=lab.ext, dst=lab.external) / ICMP(type=3, code=3) / Raw(bytes(quoted))])
        silent(spy)
    victim.dnatctl("release", str(port))


@pytest.mark.parametrize("source", ["192.0.2.66", "10.66.0.77", "172.16.0.1", "127.0.0.1", "0.0.0.0"])
def test_spoofed_and_private_sources_never_leave(lab: Lab, source: str) -> None:
    """Whatever a device of the LAN claims to be, the outside does not see it."""
    with netns.enter(lab["ext"].namespace):
        seen = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    with seen, lab["ext"].socket(UDP_SOCKET, OUTSIDE) as outside:
        seen.bind(("eth0", 0x0800))
        seen.settimeout(1)
        packet = IP(src=source, dst=lab.ext) / UDP(sport=4000, dport=OUTSIDE) / Raw(b"spoofed")
        honest = IP(src=lab.external, dst=lab.ext)
        honest /= TCP(sport=lab["phone2"].ports("ephemeral").last, dport=9) / Raw(b"honest")
        send_frames(lab["phone2"], lab, [packet, honest])
        sources = set()
        while True:
            frame = seen.recv(2000)
            if b"spoofed" in frame:
                sources.add(IP(frame[14:]).src)
            if b"honest" in frame:
                break
        # A device of the LAN is masqueraded; nothing else gets out.
        assert sources <= {"203.0.113.1"}
        if source not in ("10.66.0.77",):
            assert sources == set()
            silent(outside)
