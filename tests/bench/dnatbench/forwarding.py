"""What a packet costs on its way through a router: CPU nanoseconds, beside other routers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dnat.system import netns
from dnatbench.kernel import Generator
from dnatbench.measure import CpuClock, Samples, Summary, interleave, net, one_cpu, ratio
from dnatbench.peers import PEERS, Nftables, Peer

DROP_XDP, DROP_TC = "drop at XDP", "drop at TC"
FLOOR_XDP, FLOOR_TC = "bare redirect at XDP", "bare redirect at TC"
FORWARDING, NFTABLES = "plain forwarding", "nftables NAT"
_CONNTRACK = {
    "/proc/sys/net/netfilter/nf_conntrack_buckets": 1 << 20,
    "/proc/sys/net/netfilter/nf_conntrack_max": 1 << 22,
}
_DELIVERED = 0.99


@dataclass(frozen=True)
class Scenario:
    """What is sent."""

    inbound: bool
    octets: int
    """Of the frame."""
    flows: int
    new: bool = False
    """Each packet is the first one of its flow."""

    @property
    def direction(self) -> str:
        return "in" if self.inbound else "out"


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    scenarios: tuple[Scenario, ...]
    rounds: int
    packets: int
    """In each sample."""


def _scenarios(small: Sequence[int], large: Sequence[int]) -> tuple[Scenario, ...]:
    steady = (
        Scenario(inbound, octets, flows)
        for octets, counts in ((60, small), (1400, large))
        for flows in counts
        for inbound in (True, False)
    )
    return (*steady, Scenario(True, 60, 1_000_000, new=True), Scenario(False, 60, 1_000_000, new=True))


FULL = Effort(_scenarios((1, 1_000, 60_000, 1_000_000), (1, 60_000)), rounds=9, packets=300_000)
SHORT = Effort(_scenarios((1, 60_000), ()), rounds=2, packets=100_000)


class Forwarding:
    """All routers side by side."""

    def __init__(self, peers: Sequence[Peer], cpu: int) -> None:
        self._peers = peers
        self._clock = CpuClock(cpu)
        self._generator = Generator()
        self._fresh = 0

    def measure(self, scenario: Scenario, effort: Effort) -> Samples:
        """CPU nanoseconds per packet of each router."""
        for peer in self._peers:
            if not scenario.new:
                self._sample(peer, scenario, max(scenario.flows, 20_000))
        variants = {peer.label: lambda peer=peer: self._sample(peer, scenario, effort.packets) for peer in self._peers}
        return interleave(variants, effort.rounds)  # type: ignore[arg-type]

    def _sample(self, peer: Peer, scenario: Scenario, packets: int) -> float:
        plan = peer.plan(inbound=scenario.inbound, flows=scenario.flows, length=scenario.octets, private=peer.private)
        if scenario.new:
            peer.forget_flows()
            self._fresh = (self._fresh + packets) % scenario.flows
        self._generator.prepare(plan, self._fresh if scenario.new else 0)
        arrived = peer.arrived(scenario.inbound)
        with netns.enter(peer.ends):
            started = self._clock.ns()
            self._generator.send(packets)
            spent = self._clock.ns() - started
        arrived = peer.arrived(scenario.inbound) - arrived
        if arrived < packets * _DELIVERED:
            raise RuntimeError(f"{peer.label}: {arrived} of {packets} packets arrived ({scenario})")
        return spent / packets


def run(effort: Effort, say: Any) -> list[dict[str, Any]]:
    """One row for each scenario and router: see ``_rows``."""
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        cpu = stack.enter_context(one_cpu())
        stack.enter_context(room_for_flows())
        peers = [stack.enter_context(build()) for build in PEERS]
        bench = Forwarding(peers, cpu)
        for scenario in effort.scenarios:
            kind = "new flows" if scenario.new else f"{scenario.flows:,} flows"
            say(f"router {scenario.direction}, {scenario.octets} octets, {kind}")
            found += _rows(scenario, bench.measure(scenario, effort))
        for peer in peers:
            if isinstance(peer, Nftables):
                peer.forget_flows()
    return found


def _rows(scenario: Scenario, samples: Samples) -> Iterator[dict[str, Any]]:
    """Every figure is net of a router that drops at the same place: one at XDP of that at XDP, all others of that
    at TC, unless they are compared with one at XDP.
    """
    for label, values in samples.items():
        at_xdp = label.endswith("XDP")
        drop = samples[DROP_XDP if at_xdp else DROP_TC]
        own = net(values, drop)
        row = asdict(scenario) | {"direction": scenario.direction, "router": label}
        row["ns"] = asdict(Summary.of(values))
        row["net_ns"] = asdict(Summary.of(own))
        row["mpps"] = 1e3 / Summary.of(values).median
        if not label.startswith("drop"):
            row["of_forwarding"] = asdict(ratio(own, net(samples[FORWARDING], drop)))
            row["of_floor"] = asdict(ratio(own, net(samples[FLOOR_XDP if at_xdp else FLOOR_TC], drop)))
            row["nftables_of_this"] = asdict(ratio(net(samples[NFTABLES], drop), own))
        yield row


@contextmanager
def room_for_flows() -> Iterator[None]:
    """Let conntrack keep a million flows, with as many buckets as it should then have; put back afterwards."""
    before = {path: Path(path).read_text() for path in _CONNTRACK if Path(path).exists()}
    for path, value in _CONNTRACK.items():
        if path in before and int(before[path]) < value:
            Path(path).write_text(str(value))
    try:
        yield
    finally:
        for path, text in before.items():
            Path(path).write_text(text)
