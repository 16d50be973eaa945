"""A ladder picture of calls in one capture: who the parties are is read from SIP and SDP themselves."""

from __future__ import annotations

import re
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


PROXY, REDIRECT, PHONE = "SIP proxy", "redirect server", "phone"


@dataclass(slots=True)
class _Party:
    """One end of SIP messages, with the ports that its SDP named."""

    sip: Endpoint
    name: str = PHONE
    ports: set[int] = field(default_factory=set)

    @property
    def serves(self) -> bool:
        return self.name in (PROXY, REDIRECT)


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
                parties.setdefault(end, _Party(end, ports={end.port}))
            # Who says it first means himself; a proxy repeats it.
            for media in message.media:
                if media.endpoint not in told:
                    told.add(media.endpoint)
                    parties[message.source].ports |= {media.endpoint.port, media.endpoint.port + 1}
        for end, name in _names(call).items():
            if parties[end].name == PHONE:
                parties[end].name = name
    # Servers stand beside the router.
    found = sorted(parties.values(), key=lambda party: party.serves)
    near = [_node(party) for party in found if party.sip.address in shared]
    far = [_node(party) for party in reversed(found) if party.sip.address not in shared]
    return draw_ladder(
        near, LadderNode("router", ("forwards by port",)), far, [_scene(call) for call in calls], CAPTION
    )


def title(call: Call) -> str:
    """Who calls whom, by SIP address."""
    first = call.messages[0]
    return f"{_address(first.header('From')) or call.caller} calls {_address(first.header('To')) or call.callee}"


def _names(call: Call) -> dict[Endpoint, str]:
    """What the messages show of their ends: who passes invitations on, who sends callers elsewhere, who is who."""
    invitations = [message for message in call.messages if message.summary == "INVITE"]
    came = {(message.destination, message.header("CSeq")): message.source for message in invitations}
    names: dict[Endpoint, str] = {}
    for message in call.messages:
        if message.method == "INVITE" and message.status and 300 <= message.status < 400:
            names.setdefault(message.source, REDIRECT)
    for message in invitations:
        before = came.get((message.source, message.header("CSeq")))
        if before is not None and before != message.destination:
            names.setdefault(message.source, PROXY)
    for message in invitations[:1]:
        names.setdefault(message.source, _user(message.header("From")))
    for message in invitations:
        names.setdefault(message.destination, _user(message.header("To")))
    return names


def _user(header: str | None) -> str:
    """The user of a SIP address, or the whole address where there is none."""
    return _address(header).rpartition("@")[0] or _address(header) or PHONE


def _address(header: str | None) -> str:
    """``alice@198.51.100.1`` of a From or To header."""
    found = re.search(r"sips?:([^>;\s]+)", header or "")
    return found[1] if found else ""


def _node(party: _Party) -> LadderNode:
    media = sorted(party.ports - {party.sip.port})
    second = f"RTP {media[0]}" if media else "signalling only" if party.serves else "no media"
    holds = tuple((party.sip.address, PortRange(port, port)) for port in sorted(party.ports))
    return LadderNode(party.name, (str(party.sip), second), holds)


def _scene(call: Call) -> Scene:
    streams = tuple(StreamSeen(stream, stream.packets + stream.lost) for stream in call.streams)
    lost = sum(seen.lost for seen in streams)
    verdict = f"{lost} packets lost" if streams else "no media seen"
    note = f"Call-ID {call.call_id}"
    return Scene(
        title(call),
        note,
        (SceneCall(call, streams),),
        verdict,
        good=bool(streams) and not lost,
    )
