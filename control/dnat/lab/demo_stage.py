"""The demo's stage: ports leased for the phones, captures running, the calls made and judged."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from dnat.capture.calls import Stranger, Traffic, read_traffic, unleased_addresses
from dnat.capture.recorder import Recorder
from dnat.errors import DnatError
from dnat.lab import topology as lab
from dnat.lab.control import DNATCTL
from dnat.lab.demo_calls import ROUNDS, TALK, JudgedCall, MadeCall, Round, judge, make_calls, problems_of
from dnat.lab.phone import Phone, PhoneSettings
from dnat.lab.topology import Topology
from dnat.system import netns
from dnat.types import PortRange

PORTS_PER_PHONE = 16
"""SIP, SIP over TLS, and RTP with RTCP for seven calls."""

EXT_SIP_PORT = 5060
EXT_RTP = PortRange(40000, 40031)

TONES = {"phone1": 440, "phone2": 660, "ext": 880}
"""Hertz; every phone has a voice of its own."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LeasedBlock:
    """Ports that a node leased for its phone."""

    id: str
    address: IPv4Address
    ports: PortRange


@dataclass(frozen=True, slots=True)
class Stage:
    """The network that the calls are made in."""

    phones: tuple[PhoneSettings, ...]
    """Those behind the shared address first, the outside one last."""
    captures: Mapping[str, tuple[str, str]]
    """Where to capture: name of the phone, or ``wan``, to network namespace and interface."""
    leased: Mapping[IPv4Address, tuple[PortRange, ...]]
    """External addresses, and the ports of them that the router knows owners of."""
    outside: tuple[IPv4Network, ...]
    """Networks beyond the router."""

    @property
    def near(self) -> tuple[PhoneSettings, ...]:
        return self.phones[:-1]

    @property
    def far(self) -> PhoneSettings:
        return self.phones[-1]


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What came of it."""

    stage: Stage
    rounds: tuple[tuple[Round, tuple[JudgedCall, ...]], ...]
    strangers: tuple[Stranger, ...]
    """Addresses on the WAN link that should not be there."""
    problems: tuple[str, ...]
    """Everything that went wrong, as sentences; empty when all worked."""
    captures: tuple[Path, ...]


def _remove_former(output: Path) -> None:
    for phone in TONES:
        shutil.rmtree(output / "phones" / phone, ignore_errors=True)
    pictures = output.glob("call-[0-9]*.svg")
    for left in (*(output / f"{name}.pcap" for name in (*TONES, "wan")), output / "calls.svg", *pictures):
        left.unlink(missing_ok=True)


@contextlib.contextmanager
def prepared(topology: Topology, output: Path) -> Iterator[Stage]:
    """The stage in a lab that is up: ports are leased for the phones at the start and given back at the end.

    ``output`` is made, and rid of what an earlier demo left there; other files stay. Raises DnatError when ports
    cannot be leased.
    """
    output.mkdir(parents=True, exist_ok=True)
    _remove_former(output)
    with contextlib.ExitStack() as stack:
        phones = []
        for name in ("phone1", "phone2"):
            block = stack.enter_context(leased_block(topology.namespace(name), PORTS_PER_PHONE))
            first = block.ports.first
            phones.append(
                PhoneSettings(
                    name=name,
                    namespace=topology.namespace(name),
                    address=block.address,
                    sip_port=first,
                    # Port first + 1 is baresip's for TLS.
                    rtp=PortRange(first + 2, block.ports.last),
                    directory=output / "phones" / name,
                    tone=TONES[name],
                )
            )
        ext = PhoneSettings(
            name="ext",
            namespace=topology.namespace("ext"),
            address=lab.EXT,
            sip_port=EXT_SIP_PORT,
            rtp=EXT_RTP,
            directory=output / "phones" / "ext",
            tone=TONES["ext"],
            interface="eth0",
        )
        owners: dict[IPv4Address, tuple[PortRange, ...]] = {}
        for owner in dnatctl(topology.namespace("router"), "show", "-o", "json")["owners"]:
            address = IPv4Address(owner["address"])
            owners[address] = (*owners.get(address, ()), PortRange(owner["first"], owner["last"]))
        # An address of the router's own lies in the WAN's network, and is judged by its ports all the same.
        shared = IPv4Network(topology.external)
        outside = lab.WAN.address_exclude(shared) if topology.own_address else (lab.WAN,)
        yield Stage(
            phones=(*phones, ext),
            captures={
                **{settings.name: (settings.namespace, "eth0") for settings in (*phones, ext)},
                # With several routers, where the outside is plugged in.
                "wan": (topology.switch, "ext-wan") if topology.routers > 1 else (topology.namespace("router"), "wan"),
            },
            leased=owners,
            outside=tuple(outside),
        )


@contextlib.contextmanager
def leased_block(namespace: str, count: int) -> Iterator[LeasedBlock]:
    """Ports for a program in this namespace, first one even, asked for as users do; released at the end."""
    wish = ("--ports", str(count), "--parity", "even", "--exact")
    lease = dnatctl(namespace, "request", *wish, "-o", "json")["lease"]
    block = LeasedBlock(lease["id"], IPv4Address(lease["address"]), PortRange(lease["first"], lease["last"]))
    try:
        yield block
    finally:
        dnatctl(namespace, "release", block.id, "-o", "json")


def dnatctl(namespace: str, *arguments: str) -> Any:
    """Run dnatctl in a node and return the JSON that it prints. Raises DnatError when it fails."""
    done = netns.run([DNATCTL, *arguments], namespace, capture_output=True, text=True)
    if done.returncode != 0:
        raise DnatError(f"dnatctl {arguments[0]} failed in {namespace}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def perform(stage: Stage, output: Path, say: Say, rounds: Sequence[Round] = ROUNDS, talk: float = TALK) -> DemoResult:
    """Make calls of ``talk`` seconds on this stage and judge them.

    Files go to ``output``: ``NAME.pcap``, ``phones/NAME/``.
    Raises PhoneError or PlatformError when a call or a capture cannot be made at all.
    """
    recorders = {
        name: Recorder(namespace, interface, output / f"{name}.pcap")
        for name, (namespace, interface) in stage.captures.items()
    }
    made: list[tuple[Round, list[MadeCall]]] = []
    with contextlib.ExitStack() as stack:
        for recorder in recorders.values():
            stack.enter_context(recorder)
        phones = {settings.name: stack.enter_context(Phone(settings)) for settings in stage.phones}
        for round_ in rounds:
            say(f"{round_.title} …")
            made.append((round_, make_calls(round_, phones, talk)))
    say("reading the captures …")
    traffic = {name: read_traffic(recorder.path) for name, recorder in recorders.items()}
    judged = tuple((round_, tuple(_judge(stage, call, traffic, talk) for call in calls)) for round_, calls in made)
    strangers = unleased_addresses(traffic["wan"], stage.leased, stage.outside)
    problems = [problem for _, calls in judged for problem in problems_of(calls)]
    problems += [f"an address that nobody leased showed on the WAN link: {stranger}" for stranger in strangers]
    problems += [
        f"{recorder.dropped} packets are missing in the capture {recorder.path}"
        for recorder in recorders.values()
        if recorder.dropped
    ]
    return DemoResult(
        stage=stage,
        rounds=judged,
        strangers=strangers,
        problems=tuple(problems),
        captures=tuple(recorder.path for recorder in recorders.values()),
    )


def _judge(stage: Stage, made: MadeCall, traffic: Mapping[str, Traffic], talk: float) -> JudgedCall:
    hairpin = stage.far.name not in (made.plan.caller, made.plan.callee)
    return judge(made, traffic, traffic["wan"], hairpin, talk)
