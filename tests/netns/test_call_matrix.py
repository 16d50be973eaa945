"""Every call path with two makes of phones: the calls of ``call_matrix``, several at a time, judged at both ends."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from call_judge import counts, streams
from call_matrix import CASES, Case
from nodes import Lab, Node
from sip_linphone import LinPhone
from sip_phones import CallPhone, SipPhone

from dnat.capture.recorder import Recorder
from dnat.sip import database
from dnat.types import PortRange

MAKES: dict[str, type[CallPhone]] = {"baresip": SipPhone, "linphone": LinPhone}
PLACES = {
    "out": ("phone1", "ext", "phone2"),
    "in": ("ext", "phone1", "phone2"),
    "inside": ("phone1", "phone2", "ext"),
}
"""Where caller, callee and the third phone of a transfer are."""
TONES = (440, 660, 880)
TALK, HEARD = 2.5, 1.0
"""Seconds of sound, and how much of them must have been heard clearly."""
EDGE = 15
"""Packets that a phone may count other than the wire does: before its keys are agreed, and while it hangs up."""
TOGETHER = 4
"""Calls at the same time."""


class Stage:
    """The phones of one case, and the URIs that lead to them."""

    def __init__(self, lab: Lab, case: Case, number: int, directory: Path, blocks: Iterator[PortRange]) -> None:
        self.lab, self.case = lab, case
        places = PLACES[case.way]
        makes = (case.caller, case.callee, "baresip")
        self.phones = [
            self._phone(role, number, MAKES[make](lab[place], directory / role, tone), blocks)
            for role, place, make, tone in zip(("caller", "callee", "third"), places, makes, TONES, strict=True)
            if role != "third" or case.deed == "transfer"
        ]

    def _phone(self, role: str, number: int, phone: CallPhone, blocks: Iterator[PortRange]) -> CallPhone:
        case, user = self.case, f"{role}{number}"
        served = case.path != "direct"
        if phone.node.name == "ext":
            # A stranger calls in without a word to the server.
            server = self.lab.external if served and role != "caller" else None
            phone.outside(user, case.media, server, case.transport, next(blocks))
        else:
            phone.provision(user, "--transport", case.transport, "--encryption", case.media, "--calls", "2")
        phone.answers = not (role == "callee" and case.deed == "cancel")
        self.registers = served
        return phone

    def uri(self, phone: CallPhone) -> str:
        """How the case's path leads to it."""
        if self.case.path == "direct":
            return phone.direct_over(self.case.transport)
        port = {"udp": "", "tcp": ";transport=tcp", "tls": ":5061;transport=tls"}[self.case.transport]
        return f"sip:{phone.user}@{self.lab.external}{port}"

    def play(self) -> None:
        """Make the call; fails the test where a phone is not satisfied."""
        caller, callee, *others = self.phones
        with ExitStack() as stack:
            for phone in self.phones:
                stack.enter_context(phone)
            for phone in self.phones:
                if self.registers and not (phone is caller and self.case.way == "in"):
                    phone.registered()
            if self.case.deed == "cancel":
                self._cancel(caller, callee)
                return
            begin, beginning = caller.mark, callee.mark
            caller.ring(self.uri(callee))
            callee.await_answer(beginning)
            caller.await_answer(begin)
            time.sleep(TALK)
            if self.case.deed == "transfer":
                self._transfer(caller, callee, others[0])
                return
            if self.case.deed == "hold":
                caller.hold()
                time.sleep(1.0)
                caller.resume()
                time.sleep(TALK)
            caller.hang_up()
            caller.await_end(begin)
            callee.await_end(beginning)
            caller.hears(callee.tone, HEARD)
            callee.hears(caller.tone, HEARD)

    def _cancel(self, caller: CallPhone, callee: CallPhone) -> None:
        begin, beginning = caller.mark, callee.mark
        caller.ring(self.uri(callee))
        callee.await_ringing(beginning)
        caller.await_ringing(begin)
        caller.hang_up()
        callee.await_end(beginning)

    def _transfer(self, caller: CallPhone, callee: CallPhone, third: CallPhone) -> None:
        begin, beginning = caller.mark, third.mark
        callee.transfer(self.uri(third))
        third.await_answer(beginning)
        time.sleep(TALK)
        third.hang_up()
        third.await_end(beginning)
        caller.await_end(begin)
        caller.hears(third.tone, HEARD)
        third.hears(caller.tone, HEARD)


def judge(stage: Stage, captures: dict[str, Path]) -> list[str]:
    """What the wire says against it, empty when all is well."""
    case, (caller, callee, *third) = stage.case, stage.phones
    problems = []
    parties = [(caller, callee)] + [(caller, other) for other in third]
    for one, other in parties:
        for sender, receiver in ((one, other), (other, one)):
            left = streams(captures[sender.node.name], sender, receiver)
            came = streams(captures[receiver.node.name], sender, receiver)
            outside = streams(captures["wan"], sender, receiver)
            way = f"{case}: {sender.node.name} to {receiver.node.name}"
            if case.deed == "cancel":
                problems += [f"{way}: sound in a cancelled call"] if left else []
                continue
            if counts(left) != counts(came) or any(stream.lost for stream in came.values()):
                problems.append(f"{way}: sent {counts(left)}, received {counts(came)}")
            if sum(stream.packets for stream in came.values()) < 0.8 * TALK * 50:
                problems.append(f"{way}: few packets: {counts(came)}")
            crosses = "ext" in (sender.node.name, receiver.node.name)
            if counts(outside) != (counts(left) if crosses else {}):
                problems.append(f"{way}: outside were {counts(outside)} of {counts(left)}")
            noise = {stream.looks_encrypted for stream in came.values() if stream.packets > 25}
            if noise != {case.media != "none"}:
                problems.append(f"{way}: looks encrypted: {noise}")
    if case.deed != "cancel":
        problems += [problem for phone in stage.phones for problem in _counted(phone, stage, captures)]
    return problems


def _counted(phone: CallPhone, stage: Stage, captures: dict[str, Path]) -> list[str]:
    """Whether a phone's own counters agree with the capture beside it."""
    others = [other for other in stage.phones if other is not phone]
    path = captures[phone.node.name]
    wire = (
        sum(stream.packets for other in others for stream in streams(path, phone, other).values()),
        sum(stream.packets for other in others for stream in streams(path, other, phone).values()),
    )
    sent, received = (sum(numbers) for numbers in zip(*phone.counters(), strict=True))
    if 0 <= sent - wire[0] <= EDGE and 0 <= wire[1] - received <= EDGE:
        return []
    return [f"{stage.case}: {phone.user} counts {sent} sent, {received} received; at its interface were {wire}"]


def _add_users(sip: Node, count: int) -> None:
    server = json.loads(sip.dnatctl("sip", "status", "-o", "json").stdout)
    for number, role in itertools.product(range(count), ("caller", "callee", "third")):
        user = f"{role}{number}"
        database.set_user(Path(server["users"]), user, server["realm"], f"secret-{user}")


@contextmanager
def _mode(sip: Node, mode: str) -> Iterator[None]:
    """The lab's SIP server is this for a while."""
    if mode == "proxy":
        yield
        return
    path = sip.dnat_toml
    usual = path.read_text()
    path.write_text(usual.replace('"proxy"', f'"{mode}"'))
    sip.dnatctl("down")
    sip.dnatctl("up")
    try:
        yield
    finally:
        path.write_text(usual)
        sip.dnatctl("down")
        sip.dnatctl("up")


@contextmanager
def _route(ext: Node) -> Iterator[None]:
    """linphone takes the address from which it would speak to the Internet for its own, so there must be a way."""
    ext.run("ip", "route", "add", "default", "dev", "eth0")
    try:
        yield
    finally:
        ext.run("ip", "route", "del", "default", "dev", "eth0")


@pytest.mark.parametrize("mode", ["proxy", "redirect"])
def test_every_call_path(sip_lab: Lab, tmp_path: Path, mode: str) -> None:
    """Claims 1, 4, 5, 6, 8, 14, 15, 22, 23, 24, 26, 27, 28, 35, 37, 38, 39, 40, 41."""
    numbered = [(n, case) for n, case in enumerate(CASES) if (case.path == "redirect") == (mode == "redirect")]
    _add_users(sip_lab["sip"], len(CASES))
    blocks = (PortRange(first, first + 31) for first in itertools.count(40000, 32))
    problems: list[str] = []
    with _mode(sip_lab["sip"], mode), _route(sip_lab["ext"]), ThreadPoolExecutor(TOGETHER) as pool:
        for first in range(0, len(numbered), TOGETHER):
            problems += _play(sip_lab, numbered[first : first + TOGETHER], tmp_path, pool, blocks)
    assert not problems, "\n".join(problems)


def _play(
    lab: Lab, batch: Sequence[tuple[int, Case]], directory: Path, pool: ThreadPoolExecutor, blocks: Iterator[PortRange]
) -> list[str]:
    captures = {name: directory / f"{batch[0][0]}-{name}.pcap" for name in ("phone1", "phone2", "ext", "wan")}
    with ExitStack() as stack:
        for name, path in captures.items():
            place, interface = ("router", "wan") if name == "wan" else (name, "eth0")
            stack.enter_context(Recorder(lab[place].namespace, interface, path))
        making = [pool.submit(Stage, lab, case, number, directory / str(number), blocks) for number, case in batch]
        stages = [future.result() for future in making]
        playing = [pool.submit(stage.play) for stage in stages]
        failures = [(stage, future.exception()) for stage, future in zip(stages, playing, strict=True)]
    told = [f"{stage.case}: {failure}" for stage, failure in failures if failure is not None]
    return told + [problem for stage, failure in failures if failure is None for problem in judge(stage, captures)]
