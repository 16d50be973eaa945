"""The demo's calls: who calls whom, how a call is judged from both its ends and from the wire."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dnat.capture.calls import Call, Traffic
from dnat.capture.ladder import StreamSeen
from dnat.lab.phone import CallReport, Phone, PhoneError
from dnat.lab.tone import Heard, listen

TALK = 3.5
"""Seconds that the parties of a call hear each other."""
PACKETS_PER_SECOND = 50
"""G.711 in packets of 20 ms."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One call that is to be made."""

    caller: str
    """Name of a phone."""
    callee: str
    encrypted: bool = False

    def __str__(self) -> str:
        return f"{self.caller} → {self.callee}"


@dataclass(frozen=True, slots=True)
class Round:
    """Calls that are made at the same time."""

    title: str
    note: str
    plans: tuple[Plan, ...]


ROUNDS = (
    Round(
        "phone1 calls ext",
        "From a leased port to the outside; nobody on the way edits SIP or SDP.",
        (Plan("phone1", "ext"),),
    ),
    Round(
        "ext calls phone1",
        "Straight to its combination network address: no proxy, no registration, no hole to punch.",
        (Plan("ext", "phone1"),),
    ),
    Round(
        "phone1 calls phone2",
        "Both have the same external address; the router turns the packets round.",
        (Plan("phone1", "phone2"),),
    ),
    Round(
        "phone1 and phone2 call ext at the same time",
        "Two hosts talk from one address; the second call is encrypted from end to end.",
        (Plan("phone1", "ext"), Plan("phone2", "ext", encrypted=True)),
    ),
)


@dataclass(frozen=True, slots=True)
class MadeCall:
    """A call that was made and has ended, as its two phones tell it."""

    plan: Plan
    call_id: str
    caller: CallReport
    callee: CallReport
    heard_by_caller: Heard
    heard_by_callee: Heard


@dataclass(frozen=True, slots=True)
class JudgedCall:
    """A call with what the wire says about it."""

    made: MadeCall
    call: Call
    """Messages as captured at the caller."""
    there: StreamSeen | None
    """RTP from caller to callee."""
    back: StreamSeen | None
    problems: tuple[str, ...]
    """Sentences; empty when all is well."""

    @property
    def streams(self) -> tuple[StreamSeen, ...]:
        return tuple(seen for seen in (self.there, self.back) if seen is not None)


def make_calls(round_: Round, phones: Mapping[str, Phone], talk: float) -> list[MadeCall]:
    """Make the calls of one round; returns when all have ended. Raises PhoneError when one cannot be made."""
    live: list[tuple[Plan, str]] = []
    began = 0.0
    for plan in round_.plans:
        if live:
            # Phones name recordings by the second: calls that meet at one phone begin in different ones.
            time.sleep(max(0.0, int(began) + 1.02 - time.time()))
        caller, callee = phones[plan.caller], phones[plan.callee]
        uri = callee.settings.secure_uri if plan.encrypted else callee.settings.uri
        call_id = caller.call(uri, encrypted=plan.encrypted)
        callee.await_media(call_id)
        began = time.time()
        live.append((plan, call_id))
    time.sleep(talk)
    for plan, call_id in live:
        phones[plan.caller].hang_up(call_id)
        phones[plan.callee].await_closed(call_id)
    return [_collect(plan, call_id, phones[plan.caller], phones[plan.callee]) for plan, call_id in live]


def _collect(plan: Plan, call_id: str, caller: Phone, callee: Phone) -> MadeCall:
    reports = caller.report(call_id), callee.report(call_id)
    try:
        heard = [
            listen(report.recording, other.settings.tone)
            for report, other in zip(reports, (callee, caller), strict=True)
        ]
    except (OSError, EOFError) as error:
        raise PhoneError(f"the recording of {plan} cannot be read: {error}") from error
    return MadeCall(plan, call_id, *reports, *heard)


def judge(made: MadeCall, at: Mapping[str, Traffic], wan: Traffic, hairpin: bool, talk: float) -> JudgedCall:
    """Compare what the phones say with the captures at both ends and on the router's WAN link.

    ``at`` maps names of phones to what was captured on their own interfaces. A hairpin call must not show on
    the WAN.
    """
    plan = made.plan
    sent_by, got_by = at[plan.caller].call(made.call_id), at[plan.callee].call(made.call_id)
    if sent_by is None or got_by is None:
        missing = plan.caller if sent_by is None else plan.callee
        return JudgedCall(made, Call(made.call_id, (), ()), None, None, (f"nothing was captured at {missing}",))
    there, back = _measure(sent_by, got_by, outward=True), _measure(got_by, sent_by, outward=False)
    problems = [
        *_told_by_phones(made, talk),
        *_on_wire(plan, there, back),
        *_on_wan(made, wan, hairpin, there, back),
    ]
    return JudgedCall(made, sent_by, there, back, tuple(problems))


def _measure(sender: Call, receiver: Call, outward: bool) -> StreamSeen | None:
    """The stream of one direction, measured where it arrived, with the number that left its sender."""
    # Both directions show at both ends. SDP says which is which: the offer names where the caller listens.
    offer = next((m.media for m in receiver.messages if m.media and m.status is None), ())
    answer = next((m.media for m in receiver.messages if m.media and m.status is not None), ())
    target = answer if outward else offer
    if not target:
        return None
    place = target[0].endpoint
    arrived = receiver.stream_to(place.address, place.port)
    if arrived is None:
        return None
    left = next((s for s in sender.streams if s.ssrc == arrived.ssrc and s.destination == place), None)
    return StreamSeen(arrived, left.packets if left else 0)


def _told_by_phones(made: MadeCall, talk: float) -> list[str]:
    plan, problems = made.plan, []
    enough = 0.9 * talk * PACKETS_PER_SECOND
    ends = (
        (plan.caller, plan.callee, made.caller, made.heard_by_caller),
        (plan.callee, plan.caller, made.callee, made.heard_by_callee),
    )
    for name, other, report, heard in ends:
        if report.received < enough:
            problems.append(f"{name} received {report.received} RTP packets, at least {enough:.0f} were expected")
        if report.errors:
            problems.append(f"{name} counts {report.errors} errors")
        if not heard.lasted(0.8 * talk):
            problems.append(f"{name} heard {other} ({heard.tone} Hz) {heard.seconds:.1f} s of {heard.length:.1f} s")
        if plan.encrypted != (report.encryption is not None):
            problems.append(f"{name} says the call was {'encrypted' if report.encryption else 'in clear'}")
    return problems


def _on_wire(plan: Plan, there: StreamSeen | None, back: StreamSeen | None) -> list[str]:
    problems = []
    for seen, way in ((there, f"{plan.caller} to {plan.callee}"), (back, f"{plan.callee} to {plan.caller}")):
        if seen is None:
            problems.append(f"no RTP arrived from {way}")
            continue
        if seen.lost:
            problems.append(f"{seen.lost} RTP packets were lost from {way}")
        if seen.stream.looks_encrypted is not plan.encrypted:
            found = {True: "noise", False: "sound in clear", None: "too short to tell"}
            problems.append(f"the payload from {way} looks like {found[seen.stream.looks_encrypted]}")
    return problems


def _on_wan(
    made: MadeCall, wan: Traffic, hairpin: bool, there: StreamSeen | None, back: StreamSeen | None
) -> list[str]:
    outside = wan.call(made.call_id)
    if hairpin:
        return ["a call inside the LAN showed on the WAN link"] if outside is not None else []
    if outside is None:
        return ["the call did not show on the WAN link"]
    problems = []
    for seen in (there, back):
        passed = next((s for s in outside.streams if seen and s.ssrc == seen.stream.ssrc), None)
        if seen and (passed is None or passed.packets != seen.sent):
            count = passed.packets if passed else 0
            problems.append(f"{count} of {seen.sent} RTP packets to {seen.stream.destination} showed on the WAN link")
    return problems


def problems_of(calls: Sequence[JudgedCall]) -> list[str]:
    """All problems, each with the call that it belongs to."""
    return [f"{judged.made.plan}: {problem}" for judged in calls for problem in judged.problems]
