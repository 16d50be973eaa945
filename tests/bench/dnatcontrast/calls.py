"""Real calls over one way: who hears whom, how long the set-up takes, how long a media packet is under way."""

from __future__ import annotations

import statistics
import time
import wave
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dnat.capture.frames import UDP, read_packets
from dnat.capture.recorder import Recorder
from dnat.capture.rtp import is_rtp
from dnat.lab.phone import Phone, PhoneError
from dnat.lab.tone import listen
from dnatcontrast.ways import Way

TALK = 3.0
"""Seconds of a call."""
HEARD = 0.5
"""Share of them that the other's voice must have been clear for."""
ANSWER = 8.0
"""Seconds that a caller waits."""


@dataclass(frozen=True)
class Outcome:
    """One call."""

    way: str
    direction: str
    """``out`` or ``in``."""
    encrypted: bool
    answered: bool
    hears_inside: bool
    """Whether the phone behind the router heard the other one."""
    hears_outside: bool
    setup: float | None
    """Seconds from dialling to the answer; the phones answer at once."""
    delays: tuple[float, ...]
    """Seconds from one phone's interface to the other's, of each media packet, both directions."""

    @property
    def audio(self) -> str:
        if not self.answered:
            return "not reached"
        return {(True, True): "both ways", (False, False): "none"}.get(
            (self.hears_inside, self.hears_outside), "one way"
        )

    def document(self) -> dict[str, Any]:
        """For JSON."""
        document = asdict(self) | {"audio": self.audio, "packets": len(self.delays)}
        del document["delays"]
        if len(self.delays) > 1:
            ordered = statistics.quantiles(self.delays, n=20)
            document["delay_us"] = {"median": 1e6 * ordered[9], "p95": 1e6 * ordered[18]}
        return document


def make(way: Way, directory: Path, encryptions: tuple[bool, ...] = (False, True)) -> list[Outcome]:
    """Out and in, in clear and encrypted (SIP over TLS, SRTP)."""
    outcomes = []
    with Phone(way.phone) as inside, Phone(way.ext) as outside:
        for encrypted in encryptions:
            for direction in ("out", "in"):
                outcomes.append(_call(way, inside, outside, direction, encrypted, directory))
    return outcomes


def _call(way: Way, inside: Phone, outside: Phone, direction: str, encrypted: bool, directory: Path) -> Outcome:
    caller, callee = (inside, outside) if direction == "out" else (outside, inside)
    uri = way.seen_from_outside(encrypted)
    if direction == "out":
        uri = way.ext.secure_uri if encrypted else way.ext.uri
    captures = [
        Recorder(phone.settings.namespace, "eth0", directory / f"{direction}-{encrypted}-{phone.settings.name}.pcap")
        for phone in (inside, outside)
    ]
    with ExitStack() as stack:
        for capture in captures:
            stack.enter_context(capture)
        began = time.time()
        mark = caller.dial(uri, encrypted=encrypted)
        try:
            event = caller.await_event(
                lambda e: e.type in ("CALL_ESTABLISHED", "CALL_CLOSED"), f"an answer from {uri}", mark, ANSWER
            )
            answered = event.type == "CALL_ESTABLISHED"
        except PhoneError:
            answered = False
        if not answered:
            caller.give_up()
            return Outcome(way.name, direction, encrypted, False, False, False, None, ())
        time.sleep(TALK)
        caller.hang_up(event.call_id)
        callee_id = next(e.call_id for e in reversed(callee.events) if e.type == "CALL_ESTABLISHED")
        callee.await_closed(callee_id)
    return Outcome(
        way.name,
        direction,
        encrypted,
        True,
        _hears(inside, began, outside.settings.tone),
        _hears(outside, began, inside.settings.tone),
        event.at - began,
        _delays(*(capture.path for capture in captures)),
    )


def _hears(phone: Phone, began: float, tone: int) -> bool:
    """Whether what it recorded since then holds the tone for long enough; the file is whole soon after the call."""
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        for path in phone.settings.directory.glob("recordings/*-dec.wav"):
            try:
                if path.stat().st_mtime > began and listen(path, tone).seconds >= HEARD * TALK:
                    return True
            except (OSError, EOFError, wave.Error):
                continue
        time.sleep(0.1)
    return False


def _delays(near: Path, far: Path) -> tuple[float, ...]:
    """From the earlier sight of each packet to the later one."""
    sights: list[dict[bytes, float]] = []
    for path in (near, far):
        seen: dict[bytes, float] = {}
        for packet in read_packets(path):
            if packet.protocol == UDP and is_rtp(packet.payload):
                # Sequence number and SSRC: no way here changes them.
                seen.setdefault(packet.payload[2:4] + packet.payload[8:12], packet.at)
        sights.append(seen)
    return tuple(abs(sights[0][key] - sights[1][key]) for key in sights[0].keys() & sights[1].keys())
