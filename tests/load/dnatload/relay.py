"""rtpengine on the lab's router: what a relay of media costs there."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnatbench import ng
from nodes import Lab, eventually

from dnat.lab.topology import EXT, ROUTER_LAN, ROUTER_WAN
from dnat.system import netns

TICK = os.sysconf("SC_CLK_TCK")
CONTROL = ("127.0.0.1", 2223)
INTERVAL = 0.02
"""Seconds between two packets of a stream."""
SOUND = bytes(160)
"""20 ms of G.711."""


@dataclass(frozen=True)
class Relayed:
    """What was measured."""

    calls: int
    packets: int
    """Relayed, both ways."""
    lost: int
    cpu_us: float
    """CPU time of the process, microseconds a packet; what the kernel does for packets that arrive is not in it."""


def run(lab: Lab, calls: int, seconds: float) -> Relayed:
    """Calls between outside and a phone, each with a stream each way. Raises RuntimeError."""
    with _rtpengine(lab) as process, ExitStack() as stack:
        with netns.enter(lab["router"].namespace):
            control = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        control.settimeout(5)
        control.connect(CONTROL)
        eventually(lambda: _alive(control), "rtpengine answers", 20)
        streams = [stream for number in range(calls) for stream in _set_up(lab, control, number, stack)]
        before, arrived = _cpu(process.pid), _arrived(lab)
        sent = _talk(streams, seconds)
        time.sleep(0.2)
        spent, packets = _cpu(process.pid) - before, _arrived(lab) - arrived
    if packets < sent * 0.9:
        raise RuntimeError(f"rtpengine relayed {packets} of {sent} packets")
    return Relayed(calls, packets, sent - packets, spent * 1e6 / packets)


@contextmanager
def _rtpengine(lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    command = ["rtpengine", "--foreground", "--log-stderr", "--log-level=3", "--table=-1"]
    command += [f"--interface=in/{ROUTER_LAN}", f"--interface=out/{ROUTER_WAN}"]
    command += [f"--listen-ng={CONTROL[0]}:{CONTROL[1]}"]
    command += ["--port-min=20000", "--port-max=30000", "--num-threads=2", "--pidfile=/dev/null"]
    process = netns.popen(
        command, lab["router"].namespace, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _set_up(lab: Lab, control: socket.socket, number: int, stack: ExitStack) -> list[tuple[socket.socket, bytes]]:
    """One call: a connected socket at each end."""
    ends = []
    for node, address in (("ext", str(EXT)), ("phone1", lab["phone1"].address)):
        with netns.enter(lab[node].namespace):
            ends.append(stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        ends[-1].bind((address, 30000 + 2 * number))
    caller, callee = ends
    names: dict[str, Any] = {"call-id": f"load-{number}", "from-tag": "a"}
    common = names | {"replace": ["origin"], "ICE": "remove"}
    offered = ng.ask(
        control, common | {"command": "offer", "sdp": ng.sdp(*caller.getsockname()), "direction": ["out", "in"]}
    )
    answered = ng.ask(control, common | {"command": "answer", "to-tag": "b", "sdp": ng.sdp(*callee.getsockname())})
    for end, told in ((callee, offered), (caller, answered)):
        sdp = told["sdp"].decode()
        address, port = re.search(r"c=IN IP4 (\S+)", sdp), re.search(r"m=audio (\d+)", sdp)
        assert address and port
        end.connect((address[1], int(port[1])))
    return [(end, number.to_bytes(4, "big")) for end in ends]


def _talk(streams: list[tuple[socket.socket, bytes]], seconds: float) -> int:
    """Send at the pace of speech; returns how many packets."""
    start = time.monotonic()
    ticks = int(seconds / INTERVAL)
    for tick in range(ticks):
        time.sleep(max(0.0, start + tick * INTERVAL - time.monotonic()))
        head = b"\x80\x00" + tick.to_bytes(2, "big") + (tick * 160).to_bytes(4, "big")
        for end, source in streams:
            end.send(head + source + SOUND)
    return ticks * len(streams)


def _alive(control: socket.socket) -> bool:
    try:
        return bool(ng.ask(control, {"command": "ping"})["result"] == b"pong")
    except OSError:
        time.sleep(0.1)
        return False


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def _arrived(lab: Lab) -> int:
    """Packets at both ends' interfaces."""
    total = 0
    for node in ("ext", "phone1"):
        counters = re.search(r"eth0:(.*)", lab[node].run("cat", "/proc/net/dev").stdout)
        assert counters is not None
        total += int(counters[1].split()[1])
    return total
