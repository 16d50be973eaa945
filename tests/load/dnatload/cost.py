"""What a call costs a router's CPU: voice packets through dnat, beside plain forwarding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from dnatbench.forwarding import DROP_TC, DROP_XDP, FORWARDING, Effort, Forwarding, Scenario
from dnatbench.measure import Summary, net, one_cpu
from dnatbench.peers import Dnat, Drop, Peer
from dnatbench.peers import Forwarding as PlainForwarding

PACKETS_PER_SECOND = 50
"""Of one stream: 20 ms of sound in each packet."""
VOICE_OCTETS = 14 + 20 + 8 + 12 + 160
"""Ethernet, IP, UDP, RTP, G.711."""
CALLS = 200
_PEERS: tuple[Callable[[], Peer], ...] = (
    lambda: Drop("xdp"),
    lambda: Drop("tc"),
    PlainForwarding,
    lambda: Dnat("tc"),
    lambda: Dnat("xdp"),
)


@dataclass(frozen=True)
class Cost:
    """Of one router."""

    router: str
    packet_us: float
    """CPU time, microseconds; mean of the medians of both directions; beyond a router that drops."""

    @property
    def call_us(self) -> float:
        """Microseconds of CPU for each second of a call."""
        return self.packet_us * 2 * PACKETS_PER_SECOND


def run(rounds: int, packets: int) -> Iterator[Cost]:
    """Measure every router."""
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        cpu = stack.enter_context(one_cpu())
        bench = Forwarding([stack.enter_context(build()) for build in _PEERS], cpu)
        for inbound in (True, False):
            scenario = Scenario(inbound, VOICE_OCTETS, CALLS)
            samples = bench.measure(scenario, Effort((scenario,), rounds, packets))
            for label in (FORWARDING, "dnat at TC", "dnat at XDP"):
                base = samples[DROP_XDP if label.endswith("XDP") else DROP_TC]
                found.setdefault(label, []).append(Summary.of(net(samples[label], base)).median)
    for label, values in found.items():
        yield Cost(label, sum(values) / len(values) / 1000)
