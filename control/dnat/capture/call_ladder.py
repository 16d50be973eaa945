"""A ladder picture of calls in one capture: who the parties are is read from SIP and SDP themselves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from dnat.capture.calls import Call, Traffic
from dnat.capture.ladder import LadderNode, Scene, SceneCall, StreamSeen, draw_ladder
from dnat.capture.rtp import Endpoint
from dnat.errors import UsageError
from dnat.types import PortRange

CAPTION = (
    "Seconds since the first message, as captured in one place. RTP: packets that arrived here, with those that the "
    "sequence numbers say are missing counted as sent. Ports under a party's name are those of its combination "
    "network address."
)


@dataclass(slots=True)
class _Party:
    """One end of SIP messages, with the ports that its SDP named."""

    sip: Endpoint
    ports: set[int] = field(default_factory=set)


def choose(traffic: Traffic, wanted: str) -> list[Call]:
    """The calls whose Call-ID begins so; ``all`` for every call. Raises UsageError when there is none."""
    found = [c for c in traffic.calls if wanted == "all" or c.call_id.startswith(wanted)]
    found = [call for call in found if any(message.method == "INVITE" for message in call.messages)]
    if not found:
        there = ", ".join(call.call_id for call in traffic.calls) or "none"
        raise UsageError(f"no such call in the capture; Call-IDs there: {there}")
    return found


def draw(calls: Sequence[Call], shared: Collection[IPv4Address]) -> str:
    """SVG of the calls; ``shared`` are the external addresses, whose parties stand on the LAN's side."""
    parties: dict[Endpoint, _Party] = {}
    told: set[Endpoint] = set()
    for call in calls:
        for message in call.messages:
            for end in (message.source, message.destination):
                parties.setdefault(end, _Party(end, {end.port}))
            # Who says it first means himself; a proxy repeats it.
            for media in message.media:
                if media.endpoint not in told:
                    told.add(media.endpoint)
                    parties[message.source].ports |= {media.endpoint.port, media.endpoint.port + 1}
    near = [_node(party) for party in parties.values() if party.sip.address in shared]
    far = [_node(party) for party in parties.values() if party.sip.address not in shared]
    return draw_ladder(
        near, LadderNode("router", ("forwards by port",)), far, [_scene(call) for call in calls], CAPTION
    )


def _node(party: _Party) -> LadderNode:
    media = sorted(party.ports - {party.sip.port})
    lines = (str(party.sip), f"RTP {media[0]}" if media else "no media")
    holds = tuple((party.sip.address, PortRange(port, port)) for port in sorted(party.ports))
    return LadderNode(f"port {party.sip.port}", lines, holds)


def _scene(call: Call) -> Scene:
    streams = tuple(StreamSeen(stream, stream.packets + stream.lost) for stream in call.streams)
    lost = sum(seen.lost for seen in streams)
    verdict = f"{lost} packets lost" if streams else "no media seen"
    note = f"Call-ID {call.call_id}"
    return Scene(
        f"{call.caller} calls {call.callee}",
        note,
        (SceneCall(call, streams),),
        verdict,
        good=bool(streams) and not lost,
    )
