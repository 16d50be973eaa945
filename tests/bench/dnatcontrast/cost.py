"""What a media packet costs the router: CPU time of sending packets through it, less that of sending them past it.

A veth carries a packet through the whole router while its sender waits, so the sender's CPU time holds the router's;
a relay in user space is a process, whose time is added. Flows are set up as calls do it; packets are of the size that
G.711 makes. Sent are bursts with pauses, so that no queue overflows; what was lost all the same is counted.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnatbench import ng
from dnatbench.measure import CpuClock, Samples, Summary, interleave, net, one_cpu

from dnat.capture.calls import parse_sdp
from dnat.lab.topology import EXT, SIP
from dnat.system import netns
from dnatcontrast.ways import NG_PORT, RELAY, Way

OCTETS = 172
"""RTP header and 20 ms of G.711."""
BURST, BURSTS, PAUSE = 20, 100, 0.002
"""More than 50 packets that wait are a flood to rtpengine, which then discards them."""
PACKETS_PER_CALL = 50
"""Each second, in each direction."""
PAST = "past the router"


@dataclass
class Path_:
    """A flow that is set up: packets go in at one socket and come out at the other."""

    sender: socket.socket
    receiver: socket.socket
    relay: int | None
    lost: int = 0

    def cost(self, clock: CpuClock) -> float:
        """CPU nanoseconds for a packet."""
        packet = bytes([0x80]) + bytes(OCTETS - 1)
        spent, send = 0, self.sender.send
        relayed = _process_ns(self.relay)
        for _ in range(BURSTS):
            before = clock.ns()
            for _ in range(BURST):
                send(packet)
            spent += clock.ns() - before
            time.sleep(PAUSE)
        deadline, came = time.monotonic() + 1.0, 0
        while came < BURST * BURSTS and time.monotonic() < deadline:
            try:
                self.receiver.recv(2048)
                came += 1
            except BlockingIOError:
                time.sleep(0.001)
        self.lost += BURST * BURSTS - came
        return (spent + _process_ns(self.relay) - relayed) / (BURST * BURSTS)


def measure(ways: Mapping[str, Way], rounds: int) -> list[dict[str, Any]]:
    """One row for each way: nanoseconds for a packet, in each direction, and what follows for a call."""
    rows = []
    with ExitStack() as stack:
        paths = {name: stack.enter_context(_through(way)) for name, way in ways.items()}
        past = {name: stack.enter_context(_past(way)) for name, way in ways.items()}
        with one_cpu() as cpu:
            clock = CpuClock(cpu)
            variants: dict[str, Callable[[], float]] = {}
            for name in ways:
                variants[f"{PAST}: {name}"] = lambda name=name: past[name].cost(clock)
                for number, direction in enumerate(("out", "in")):
                    variants[f"{direction}: {name}"] = lambda name=name, number=number: paths[name][number].cost(clock)
            samples = interleave(variants, rounds)
        for name in ways:
            rows.append(_row(name, samples, sum(path.lost for path in paths[name]), rounds))
    return rows


def _row(name: str, samples: Samples, lost: int, rounds: int) -> dict[str, Any]:
    baseline = samples[f"{PAST}: {name}"]
    out, back = (net(samples[f"{direction}: {name}"], baseline) for direction in ("out", "in"))
    # Nanoseconds each second, in micro-CPUs (1 = a millionth of a core).
    call = [PACKETS_PER_CALL * (a + b) / 1000 for a, b in zip(out, back, strict=True)]
    return {
        "way": name,
        "out_ns": vars(Summary.of(out)),
        "in_ns": vars(Summary.of(back)),
        "microcores_per_call": vars(Summary.of(call)),
        "lost": lost,
        "sent": 2 * BURST * BURSTS * rounds,
    }


@contextmanager
def _through(way: Way) -> Iterator[tuple[Path_, Path_]]:
    """The way out and the way in of one call's media."""
    near = _socket(way.namespace("phone1"), way.spare.first if way.spare else 20100)
    far = _socket(way.namespace("ext"), 41000)
    with near, far:
        if way.name == RELAY:
            with netns.enter(way.namespace("router")):
                inside, outside = _relay_session(str(way.phone.address), 20100, str(EXT), 41000)
            near.connect(inside)
            far.connect(outside)
            # A relay believes the first packet's source.
            near.send(b"\x80" + bytes(OCTETS - 1))
            far.send(b"\x80" + bytes(OCTETS - 1))
            time.sleep(0.2)
            far.recv(2048), near.recv(2048)
        else:
            near.connect((str(EXT), 41000))
            near.send(b"here")
            _, source = far.recvfrom(100)
            far.connect(source)
        yield Path_(near, far, way.relay), Path_(far, near, way.relay)


@contextmanager
def _past(way: Way) -> Iterator[Path_]:
    """From the same host to its neighbour on the LAN: all but the router."""
    near = _socket(way.namespace("phone1"), 0, str(way.topology.node("phone1").address))
    sink = _socket(way.namespace("sip"), 42000, str(SIP))
    with near, sink:
        near.connect((str(SIP), 42000))
        yield Path_(near, sink, None)


def _socket(namespace: str, port: int, address: str = "0.0.0.0") -> socket.socket:
    with netns.enter(namespace):
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # SO_RCVBUFFORCE: room for all bursts of a round.
    opened.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)
    opened.bind((address, port))
    opened.setblocking(False)
    return opened


def _process_ns(pid: int | None) -> int:
    """CPU time of all of a process's threads."""
    if pid is None:
        return 0
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def _relay_session(inside: str, inside_port: int, outside: str, outside_port: int) -> list[tuple[str, int]]:
    """Have rtpengine make a call's two ports: where the inside sends to, and where the outside does."""
    common = {"call-id": "cost", "from-tag": "a", "ICE": "remove", "replace": ["origin"]}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        control.settimeout(5)
        control.connect(("127.0.0.1", NG_PORT))
        offer = {"command": "offer", "sdp": ng.sdp(inside, inside_port), "direction": ["inside", "outside"]}
        answer = {"command": "answer", "sdp": ng.sdp(outside, outside_port), "to-tag": "b"}
        told, back = (ng.ask(control, common | question)["sdp"].decode() for question in (offer, answer))
    media = [next(parse_sdp(text)) for text in (back, told)]
    return [(str(each.endpoint.address), each.endpoint.port) for each in media]
