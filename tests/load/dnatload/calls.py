"""Calls by the hundred through a redirect server: sipp outside calls sipp behind the shared address."""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodes import Lab, Node
from sip_messages import SipClient

from dnat.lab import builder, control
from dnat.lab.topology import Topology
from dnat.system import netns

HERE = Path(__file__).parent
TICK = os.sysconf("SC_CLK_TCK")
CALLEES = ("phone1", "phone2")
"""Hosts with a callee each: users ``load0`` and so on, called in turn."""
_PATIENCE = 60


@dataclass(frozen=True)
class Load:
    """What is done."""

    label: str
    calls: int
    rate: int
    """New calls a second."""
    hold_ms: int
    """From answer to hanging up."""
    media: bool = False
    """Sound, 50 packets a second, which the callee sends back."""


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    load: Load
    succeeded: int
    failed: int
    peak: int
    """Calls at the same time."""
    rate: float
    """Calls a second, while they were made."""
    retransmissions: int
    """Of SIP requests and answers, by the caller."""
    setup_ms: float
    """From the first INVITE to 200, the redirection included; mean."""
    voice: int
    """Packets of sound sent to the phones, by the outside's interface."""
    missing: int
    """Of them, those that did not come back from there."""
    overflows: int
    """Packets that a socket inside had no room for. (The caller's sipp leaves the sound that comes back unread.)"""
    dropped: int
    """Packets that dnat dropped, on router and hosts."""
    server_ms: float
    """CPU time of the SIP server, milliseconds a call."""
    busy: float
    """CPUs of the machine that were busy, mean."""


@contextmanager
def lab(name: str) -> Iterator[Lab]:
    """A lab with a redirect server and a user for each callee."""
    topology = Topology(prefix=name, phones=len(CALLEES), sip="redirect")
    try:
        builder.build(topology)
        control.up(topology, lambda _: None)
        found = Lab(topology)
        for number in range(len(CALLEES)):
            found["sip"].dnatctl("sip", "users", "add", f"load{number}", "--password", "secret")
        yield found
    finally:
        builder.destroy(name)


def run(lab: Lab, load: Load, directory: Path) -> Outcome:
    """Make the calls. Raises RuntimeError when sipp does not come to an end."""
    with ExitStack() as stack:
        for number, name in enumerate(CALLEES):
            stack.enter_context(_callee(lab, lab[name], f"load{number}", load, directory / name))
        return _call(lab, load, directory)


@contextmanager
def _callee(lab: Lab, phone: Node, user: str, load: Load, directory: Path) -> Iterator[None]:
    """A registered phone on leased ports: one for SIP, one that all sound goes to."""
    block = phone.request("--ports", "4", "--parity", "even", "--exact")
    try:
        options = ["-i", lab.external, "-p", str(block["first"]), "-mi", lab.external, "-mp", str(block["first"] + 2)]
        options += ["-sf", str(HERE / "callee.xml"), *(["-rtp_echo"] if load.media else [])]
        with _sipp(phone, directory, *options), SipClient(phone, lab.external) as registrar:
            server, place = f"sip:{lab.external}", f"sip:{user}@{lab.external}:{block['first']}"
            if registrar.register(server, f"sip:{user}@{lab.external}", user, "secret", place) != 200:
                raise RuntimeError("the callee could not be registered")
            yield
            registrar.register(server, f"sip:{user}@{lab.external}", user, "secret")
    finally:
        phone.dnatctl("release", block["id"])


def _call(lab: Lab, load: Load, directory: Path) -> Outcome:
    sound = directory / "sound.pcmu"
    sound.write_bytes(bytes(range(256)) * 32)
    talk = f'<nop><action><exec rtp_stream="{sound},-1,0,PCMU/8000"/></action></nop>' if load.media else ""
    scenario = directory / "caller.xml"
    text = (HERE / "caller.xml").read_text().replace("@talk", talk).replace("@hold", str(load.hold_ms))
    text = text.replace("@port", "[rtpstream_audio_port]" if load.media else "[auto_media_port]")
    scenario.write_text(text)
    users = directory / "users.csv"
    users.write_text("\n".join(["SEQUENTIAL", *(f"load{number}" for number in range(len(CALLEES)))]) + "\n")
    statistics = directory / "caller.csv"
    options = ["-sf", str(scenario), "-inf", str(users), "-i", lab.ext, "-mi", lab.ext, "-p", "5060"]
    options += ["-r", str(load.rate), "-m", str(load.calls), "-l", str(load.calls)]
    options += ["-trace_stat", "-stf", str(statistics), "-fd", "1", "-trace_err"]
    options += [f"{lab.external}:5060"]
    before = _Meter.read(lab)
    with _sipp(lab["ext"], directory / "caller", *options) as process:
        try:
            process.wait(load.calls / load.rate + load.hold_ms / 1000 + _PATIENCE)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"sipp does not end: {_tail(directory / 'caller')}") from None
    return _outcome(load, statistics, before, _Meter.read(lab))


@contextmanager
def _sipp(node: Node, directory: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    directory.mkdir(parents=True, exist_ok=True)
    command = ["sipp", *options, "-nostdin", "-buff_size", str(4 << 20), "-rtp_buffsize", str(1 << 20)]
    with (directory / "log").open("wb") as log:
        process = netns.popen(command, node.namespace, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class _Meter:
    """Counters that only grow."""

    sent: int
    received: int
    overflows: int
    drops: int
    server: float
    busy: float
    idle: float

    @classmethod
    def read(cls, lab: Lab) -> _Meter:
        shown = [lab[node].call("show")["counters"] for node in ("router", "sip", *CALLEES)]
        drops = sum(value for counters in shown for name, value in counters.items() if name.startswith("drop"))
        counters = lab["ext"].run("cat", "/proc/net/dev").stdout
        fields = re.search(r"eth0:(.*)", counters)
        assert fields is not None
        received, sent = (int(fields[1].split()[n]) for n in (1, 9))
        overflows = sum(_overflows(lab[node]) for node in ("sip", *CALLEES))
        user, nice, system, idle, iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
        busy = user + nice + system + irq + softirq
        return cls(sent, received, overflows, drops, _server_seconds(lab), busy / TICK, (idle + iowait) / TICK)


def _overflows(node: Node) -> int:
    lines = [line.split() for line in node.run("cat", "/proc/net/snmp").stdout.splitlines() if line.startswith("Udp:")]
    return int(dict(zip(*lines, strict=True))["RcvbufErrors"])


def _server_seconds(lab: Lab) -> float:
    """CPU time of all of Kamailio's processes."""
    total = 0
    for pid in netns.processes([lab["sip"].namespace]):
        text = Path(f"/proc/{pid}/stat").read_text()
        if "(kamailio)" in text:
            total += sum(map(int, text.rpartition(")")[2].split()[11:13]))
    return total / TICK


def _outcome(load: Load, statistics: Path, before: _Meter, after: _Meter) -> Outcome:
    with statistics.open() as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    last = rows[-1]
    making = [row for row in rows if int(row["TotalCallCreated"]) < load.calls]
    seconds = _seconds(making[-1]["ElapsedTime(C)"]) if making else _seconds(last["ElapsedTime(C)"])
    created = int(making[-1]["TotalCallCreated"]) if making else load.calls
    # A call without repetition: INVITE, ACK, INVITE, ACK, BYE, and 302, 200, 200.
    sent = after.sent - before.sent - 5 * load.calls
    busy, idle = after.busy - before.busy, after.idle - before.idle
    return Outcome(
        load=load,
        succeeded=int(last["SuccessfulCall(C)"]),
        failed=int(last["FailedCall(C)"]),
        peak=max(int(row["CurrentCall"]) for row in rows),
        rate=created / seconds if seconds else 0.0,
        retransmissions=int(last["Retransmissions(C)"]),
        setup_ms=_seconds(last["ResponseTime1(C)"]) * 1000,
        voice=sent,
        missing=sent - (after.received - before.received - 3 * load.calls),
        overflows=after.overflows - before.overflows,
        dropped=after.drops - before.drops,
        server_ms=(after.server - before.server) * 1000 / load.calls,
        busy=(os.cpu_count() or 1) * busy / (busy + idle),
    )


def _seconds(text: str) -> float:
    """Of sipp's ``00:00:01:234000``."""
    hours, minutes, seconds, *fraction = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds) + (int(fraction[0]) / 1e6 if fraction else 0.0)


def _tail(directory: Path) -> Any:
    return (directory / "log").read_text(errors="replace")[-2000:]
