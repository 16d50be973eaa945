"""Calls between real phones while what carries them is killed, replaced or taken away, and calls in fragments."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from call_judge import counts, streams
from inside import versions
from nodes import Lab, Node, eventually
from sip_linphone import LinPhone
from sip_phones import CallPhone, SipPhone

from dnat.capture.calls import read_traffic
from dnat.capture.recorder import Recorder
from dnat.types import PortRange

SECOND_BLOCK = PortRange(40032, 40063)
"""Of a second phone outside."""
SILENCE = 5
"""Seconds without sound after which the phones of these tests hang up."""


def _talking(stack: ExitStack, caller: CallPhone, callee: CallPhone, uri: str) -> None:
    """A call that stands when this returns."""
    beginning = callee.mark
    begin = caller.ring(uri)
    callee.await_answer(beginning)
    caller.await_answer(begin)


def _go_on(phones: Iterable[CallPhone]) -> None:
    """All of them go on hearing."""
    sizes = {phone: phone.recordings()[-1].stat().st_size if phone.recordings() else 0 for phone in phones}
    for phone, size in sizes.items():
        eventually(
            lambda phone=phone, size=size: phone.recordings() and phone.recordings()[-1].stat().st_size > size + 16_000,
            f"{phone.identity} goes on hearing",
            20,
        )


def _recorders(lab: Lab, directory: Path) -> dict[str, Recorder]:
    places = {name: (name, "eth0") for name in ("phone1", "phone2", "ext")} | {"wan": ("router", "wan")}
    return {
        name: Recorder(lab[node].namespace, interface, directory / f"{name}.pcap")
        for name, (node, interface) in places.items()
    }


def test_calls_go_on_while_all_around_them_is_replaced(
    sip_lab: Lab, tmp_path: Path, next_version: dict[str, str]
) -> None:
    """Router, server and agent are killed and come back, then router and host get other programs in the kernel: not
    one packet is lost, as phones and captures at all ends count."""
    router, phone1 = sip_lab["router"], sip_lab["phone1"]
    recorders = _recorders(sip_lab, tmp_path)
    with ExitStack() as stack:
        alice = stack.enter_context(SipPhone(phone1, tmp_path / "a", 440).provision("alice", "--encryption", "sdes"))
        bob = stack.enter_context(LinPhone(sip_lab["phone2"], tmp_path / "b", 660).provision("bob"))
        carol = stack.enter_context(SipPhone(phone1, tmp_path / "c", 770).provision("carol"))
        ext = stack.enter_context(SipPhone(sip_lab["ext"], tmp_path / "e", 880).outside(encryption="sdes"))
        for recorder in recorders.values():
            stack.enter_context(recorder)
        calls = ((ext, alice, alice.direct), (bob, carol, carol.direct))
        phones = (alice, ext, bob, carol)
        for caller, callee, uri in calls:
            _talking(stack, caller, callee, uri)
        _go_on(phones)
        for node in (router, phone1):
            node.kill()
            _go_on(phones)
            node.dnatctl("up")
            _go_on(phones)
        for node in (router, phone1):
            before = _programs(node)
            node.replace(env=next_version)
            assert not before & _programs(node), "other programs are at work"
            _go_on(phones)
            node.replace()
            assert _programs(node) == before
            _go_on(phones)
        for caller, callee, _ in calls:
            beginning = callee.mark
            caller.hang_up()
            callee.await_end(beginning)
    for caller, callee, _ in calls:
        for sender, receiver in ((caller, callee), (callee, caller)):
            left, came = (
                counts(streams(recorders[phone.node.name].path, sender, receiver)) for phone in (sender, receiver)
            )
            outside = counts(streams(recorders["wan"].path, sender, receiver))
            ((packets, lost, repeated),) = came.values()
            assert left == came and (lost, repeated) == (0, 0)
            assert outside == (left if ext in (sender, receiver) else {})
            assert packets > 300
            ((sent, _),), ((_, received),) = sender.counters(), receiver.counters()
            assert 0 <= sent - packets <= 15 and 0 <= packets - received <= 15
        caller.hears(callee.tone, 0.015 * packets)
        callee.hears(caller.tone, 0.015 * packets)


def _programs(node: Node) -> set[str]:
    """What is attached to its interfaces, with the version."""
    return versions(node.namespace, *(("lan", "wan") if node.name == "router" else ("eth0",)))


def _impatient(phone: CallPhone) -> CallPhone:
    """It gives a silent call up sooner than the half minute that was provisioned."""
    for name, key in (("config", "rtp_timeout "), ("linphonerc", "nortp_timeout=")):
        path = phone.directory / name
        if path.exists():
            text = path.read_text()
            assert f"{key}30" in text
            path.write_text(text.replace(f"{key}30", f"{key}{SILENCE}"))
    return phone


def test_calls_whose_ports_are_taken_back_end_cleanly(sip_lab: Lab, tmp_path: Path) -> None:
    """INVALIDATE during a call: the phone hears nothing more, and says goodbye from another port; the tool says so."""
    router = sip_lab["router"]
    recorder = _recorders(sip_lab, tmp_path)["wan"]
    with ExitStack() as stack:
        alice = SipPhone(sip_lab["phone1"], tmp_path / "a", 440).provision("alice")
        bob = LinPhone(sip_lab["phone2"], tmp_path / "b", 660).provision("bob")
        near = [stack.enter_context(_impatient(phone)) for phone in (alice, bob)]
        far = [
            stack.enter_context(SipPhone(sip_lab["ext"], tmp_path / "e", 880).outside()),
            stack.enter_context(SipPhone(sip_lab["ext"], tmp_path / "f", 990).outside(ports=SECOND_BLOCK)),
        ]
        stack.enter_context(recorder)
        for phone, other in zip(near, far, strict=True):
            _talking(stack, phone, other, other.identity)
        _go_on(far)
        said = router.dnatctl("invalidate", *(str(phone.ports) for phone in near), "--reason", "wrong block").stdout
        for phone, other in zip(near, far, strict=True):
            assert f"{phone.node.address}: {sip_lab.external}:{phone.ports}" in said
            other.await_end(0, 30)
            phone.await_end(0, 30)
    for phone, program in zip(near, ("baresip", "linphonec"), strict=True):
        (loss,) = (each for each in phone.node.show()["lost"] if each["first"] == phone.ports.first)
        assert (loss["outcome"], loss["reason"]) == ("ends", "wrong block")
        (user,) = loss["programs"]
        assert user["program"] == program
        assert phone.ports.first in user["ports"] and len(user["ports"]) > 1
        assert all(port in phone.ports for port in user["ports"])
        log = (phone.node.runtime / "daemon.log").read_text()
        assert f"(wrong block): {program} ({user['pid']}) at" in log and "calls and connections end" in log
    for call in read_traffic(recorder.path).calls:
        goodbyes = [message for message in call.messages if message.method == "BYE"]
        assert {message.status for message in goodbyes} == {None, 200}
        (port,) = {message.source.port for message in goodbyes if message.status is None}
        assert not any(port in phone.ports for phone in near)


def test_what_goes_on_when_a_host_loses_its_own_ports(sip_lab: Lab) -> None:
    """It asks for others at once and gets the same; datagrams go on from them, translated ones from a new binding."""
    phone, router = sip_lab["phone2"], sip_lab["router"]
    # Any port of the host's own outlasts other tests' bindings.
    with phone.socket(socket.SOCK_DGRAM) as native, phone.socket(socket.SOCK_DGRAM, 4242) as translated:
        for sock in (native, translated):
            _echo(sock, sip_lab)
        before = native.getsockname()
        pools = {purpose: phone.ports(purpose) for purpose in ("ephemeral", "translated")}
        for purpose, pool in pools.items():
            router.dnatctl("invalidate", str(pool), "--reason", purpose)
        eventually(lambda: set(_lost(phone)) >= {"ephemeral", "translated"}, "the host knows", 10)
        eventually(lambda: _lost(phone)["ephemeral"]["outcome"] == "kept", "it has its ports again", 10)
        assert _lost(phone)["translated"]["outcome"] == "moves"
        for sock in (native, translated):
            _echo(sock, sip_lab)
        assert native.getsockname() == before and phone.ports("ephemeral") == pools["ephemeral"]
        (program,) = _lost(phone)["ephemeral"]["programs"]
        assert (program["pid"], program["ports"]) == (os.getpid(), [before[1]])
    assert str(pools["translated"]) in phone.dnatctl("show", "lost").stdout


def _echo(sock: socket.socket, lab: Lab) -> None:
    sock.sendto(b"?", (lab.ext, 7))
    assert sock.recv(10) == b"?"


def _lost(node: Node) -> dict[str, Any]:
    """Its losses by the reason that was given."""
    return {each["reason"]: each for each in node.show()["lost"]}


@pytest.mark.parametrize("way", ["in", "in by the proxy", "out"])
def test_an_invitation_in_fragments(sip_lab: Lab, tmp_path: Path, way: str) -> None:
    """SIPp invites with 4,000 octets of header over UDP, and gives back the sound that it gets."""
    caller, place = (sip_lab["phone1"], "ext") if way == "out" else (sip_lab["ext"], "phone1")
    scenario = tmp_path / "big.xml"
    template = (Path(__file__).parent / "scenario_big.xml").read_text()
    scenario.write_text(template.replace("@big@", "x" * 4000))
    recorders = _recorders(sip_lab, tmp_path)
    ports = PortRange(40500, 40503)
    if way == "out":
        lease = caller.request("--ports", "4", "--parity", "even", "--exact")
        ports = PortRange(lease["first"], lease["last"])
    phone = SipPhone(sip_lab[place], tmp_path / "phone", 440)
    with ExitStack() as stack:
        stack.enter_context(phone.outside() if way == "out" else phone.provision("alice"))
        for name in (place, "wan"):
            stack.enter_context(recorders[name])
        target = f"{phone.address}:{phone.ports.first}"
        if way == "in by the proxy":
            phone.registered()
            target = f"{sip_lab.external}:5060"
        address = sip_lab.external if way == "out" else sip_lab.ext
        command = ["sipp", target, "-sf", str(scenario), "-s", phone.user, "-i", address, "-p", str(ports.first)]
        command += ["-mi", address, "-mp", str(ports.first + 2), "-m", "1", "-rtp_echo", "-nostdin", "-timeout", "30"]
        caller.run(*command, stdin=subprocess.DEVNULL, cwd=tmp_path)
        phone.await_end()
        phone.hears(phone.tone)
    if way == "out":
        caller.dnatctl("release", lease["id"])
    for name in (place, "wan"):
        traffic = read_traffic(recorders[name].path)
        (call,) = traffic.calls
        big = [message for message in call.messages if message.status is None and message.header("X-Big")]
        assert {message.summary for message in big} == {"INVITE", "BYE"}
        assert all(message.fragments > 2 for message in big)
        assert all(stream.lost == 0 and stream.packets > 80 for stream in call.streams) and len(call.streams) == 2
