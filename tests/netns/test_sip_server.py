"""The sip role with real phones: registration, calls through proxy and redirect server, and who is turned away."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inside import differences, snapshot
from nodes import Lab, Node, eventually
from sip_messages import SipClient, request
from sip_phones import SipPhone, converse
from sip_torture import MESSAGES

from dnat import probe
from dnat.sip.places import PLACES
from dnat.system import netns


def _ask(lab: Lab, *what: str) -> Any:
    return json.loads(lab["sip"].dnatctl("sip", *what, "-o", "json").stdout)


@pytest.fixture(scope="module")
def alice(sip_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SipPhone]:
    directory = tmp_path_factory.mktemp("alice") / "phone"
    with SipPhone(sip_lab["phone1"], directory, 440).provision("alice") as phone:
        yield phone.registered()


@pytest.fixture(scope="module")
def bob(sip_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SipPhone]:
    directory = tmp_path_factory.mktemp("bob") / "phone"
    with SipPhone(sip_lab["phone2"], directory, 660).provision("bob") as phone:
        yield phone.registered()


@pytest.fixture(scope="module")
def ext(sip_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SipPhone]:
    with SipPhone(sip_lab["ext"], tmp_path_factory.mktemp("ext") / "phone", 880).outside() as phone:
        yield phone


def test_outside_calls_inside_through_the_proxy(sip_lab: Lab, alice: SipPhone, ext: SipPhone) -> None:
    """Claims 8, 9, 10, 26, 29, 30, 31: an INVITE to the external address at 5060 is proxied to the phone."""
    (registration,) = [one for one in _ask(sip_lab, "registrations") if one["user"] == "alice"]
    assert f"@{sip_lab.external}:{alice.ports.first}" in registration["contact"]
    converse(ext, alice, f"sip:alice@{sip_lab.external}:5060")


def test_two_phones_of_one_address_call_each_other_through_the_proxy(alice: SipPhone, bob: SipPhone) -> None:
    converse(alice, bob, bob.identity)


def test_a_user_calls_out_directly(alice: SipPhone, ext: SipPhone) -> None:
    converse(alice, ext, ext.identity)


def test_a_call_is_listed_while_it_lasts(sip_lab: Lab, alice: SipPhone, ext: SipPhone) -> None:
    assert _ask(sip_lab, "calls") == []
    call_id = ext.call(alice.identity)
    eventually(lambda: [c["state"] for c in _ask(sip_lab, "calls")] == ["talking"], "the call is listed")
    (listed,) = _ask(sip_lab, "calls")
    assert listed["call_id"] == call_id
    assert (listed["caller"], listed["callee"]) == (ext.identity, alice.identity)
    assert listed["caller_at"] == f"{sip_lab.ext}:{ext.ports.first}"
    assert listed["callee_at"] == f"{sip_lab.external}:{alice.ports.first}"
    watched = sip_lab["sip"].dnatctl("sip", "calls", "--watch", "0.2", "--count", "2", "-o", "json").stdout.splitlines()
    assert [json.loads(line)[0]["state"] for line in watched] == ["talking"] * 2
    ext.command("hangup")
    alice.wait_for("CALL_CLOSED", 0, call_id)
    eventually(lambda: _ask(sip_lab, "calls") == [], "the call is gone")


def test_a_registration_survives_kamailio_and_the_daemon(sip_lab: Lab, alice: SipPhone, ext: SipPhone) -> None:
    sip = sip_lab["sip"]
    before = _ask(sip_lab, "registrations")
    pid = _ask(sip_lab, "status")["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: _ask_running(sip) not in (None, pid), "Kamailio is started again", 15)
    assert "was ended by SIGKILL" in Path(f"/run/dnat/{sip.namespace}/daemon.log").read_text()
    os.kill(sip.pid(), signal.SIGKILL)
    eventually(lambda: sip.dnatctl("status", code=None).returncode == 5, "the daemon is dead")
    sip.dnatctl("up")
    after = _ask(sip_lab, "registrations")
    assert [one["contact"] for one in after] == [one["contact"] for one in before]
    converse(ext, alice, alice.identity)


def test_what_a_killed_daemon_left_is_ended_before_another_starts(sip_lab: Lab) -> None:
    """Main process and daemon die together, so that nobody ends Kamailio's other processes."""
    sip = sip_lab["sip"]
    main = _ask(sip_lab, "status")["pid"]
    orphans = [pid for pid in _kamailio(sip) if pid != main]
    assert len(orphans) > 6
    for pid in (sip.pid(), main):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: sip.dnatctl("status", code=None).returncode == 5, "the daemon is dead")
    assert set(orphans) <= set(_kamailio(sip))
    sip.dnatctl("up")
    assert not set(orphans) & set(_kamailio(sip))
    with SipClient(sip_lab["ext"], sip_lab.external) as stranger:
        assert stranger.ask(request("OPTIONS", f"sip:{sip_lab.external}", "sip:me@203.0.113.2")) == 200


def test_a_server_that_hangs_is_started_again(sip_lab: Lab) -> None:
    sip, before = sip_lab["sip"], _ask(sip_lab, "status")
    for pid in _kamailio(sip):
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: _ask_running(sip) not in (None, before["pid"]), "Kamailio is started again", 60)
    assert "did not answer" in Path(f"/run/dnat/{sip.namespace}/daemon.log").read_text()
    with SipClient(sip_lab["ext"], sip_lab.external) as stranger:
        assert stranger.ask(request("OPTIONS", f"sip:{sip_lab.external}", "sip:me@203.0.113.2")) == 200


def _kamailio(sip: Node) -> list[int]:
    """All its processes."""
    found = []
    for pid in netns.processes([sip.namespace]):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/usr/sbin/kamailio\0"):
                found.append(pid)
    return found


def _ask_running(sip: Node) -> int | None:
    answer = sip.dnatctl("sip", "status", "-o", "json", code=None)
    return json.loads(answer.stdout)["pid"] if answer.stdout.startswith("{") else None


def test_strangers_cannot_relay(sip_lab: Lab) -> None:
    with SipClient(sip_lab["ext"], sip_lab.external) as stranger:
        elsewhere = "sip:victim@203.0.113.77"
        assert stranger.ask(request("INVITE", elsewhere, "sip:me@203.0.113.2")) == 403
        assert stranger.ask(request("MESSAGE", elsewhere, f"sip:alice@{sip_lab.external}")) == 407
        assert stranger.ask(request("BYE", elsewhere, "sip:me@203.0.113.2", to_tag="x")) == 481
        route = f"Route: <sip:{sip_lab.external};lr;t=0123456789abcdef01234567>\r\n"
        assert stranger.ask(request("BYE", elsewhere, "sip:me@203.0.113.2", to_tag="x", more=route)) == 403
        preset = "Route: <sip:203.0.113.77;lr>\r\n"
        assert stranger.ask(request("INVITE", elsewhere, "sip:me@203.0.113.2", more=preset)) == 403


def test_nobody_pretends_to_be_a_user(sip_lab: Lab) -> None:
    bob = f"sip:bob@{sip_lab.external}"
    with SipClient(sip_lab["ext"], sip_lab.external) as stranger:
        assert stranger.ask(request("INVITE", f"sip:alice@{sip_lab.external}", bob)) == 407
        assert stranger.ask(request("REGISTER", f"sip:{sip_lab.external}", bob, to=bob)) == 401
        registrar = f"sip:{sip_lab.external}"
        for password in ("wrong", "secret-carol"):
            # carol's right password does not make her bob.
            user = "carol" if password == "secret-carol" else "bob"
            status = stranger.register(registrar, bob, user, password)
            assert status in (401, 403), password
        assert stranger.register(registrar, f"sip:carol@{sip_lab.external}", "carol", "secret-carol") == 200


def test_guessing_locks_out_the_guesser_alone(sip_lab: Lab) -> None:
    """Same user, same address: only the block of ports that the guesses came from is locked."""
    registrar, carol = f"sip:{sip_lab.external}", f"sip:carol@{sip_lab.external}"
    with (
        SipClient(sip_lab["phone1"], sip_lab.external) as guesser,
        SipClient(sip_lab["phone2"], sip_lab.external) as user,
    ):
        answers = [guesser.register(registrar, carol, "carol", f"guess-{n}") for n in range(11)]
        assert answers[:9] == [401] * 9 and answers[-1] == 403
        assert guesser.register(registrar, carol, "carol", "secret-carol") == 403
        assert user.register(registrar, carol, "carol", "secret-carol") == 200


def _set(sip: Node, before: str, after: str) -> None:
    """Change the node's configuration, and start with it."""
    path = sip.dnat_toml
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    sip.dnatctl("down")
    sip.dnatctl("up")


LAVISH, STRICT = "block_rate = 2000\naddress_rate = 5000", "block_rate = 50\naddress_rate = 100"


@pytest.fixture
def strict(sip_lab: Lab) -> Iterator[Node]:
    """The SIP server with limits as in the wild."""
    sip = sip_lab["sip"]
    _set(sip, LAVISH, STRICT)
    yield sip
    _set(sip, STRICT, LAVISH)


def test_floods_hurt_only_the_block_or_the_stranger_they_come_from(sip_lab: Lab, strict: Node) -> None:
    """A phone floods the server, then a stranger does from many ports; others are served as before. So are they, later.

    Connections that a stranger opens by the hundred keep nobody from another.
    """
    registrar, carol = f"sip:{sip_lab.external}", f"sip:carol@{sip_lab.external}"
    log = Path(f"/run/dnat/{strict.namespace}/sip/kamailio.log")
    with SipClient(sip_lab["phone2"], sip_lab.external) as user:
        with SipClient(sip_lab["phone1"], sip_lab.external) as flooder:
            via = f"Via: SIP/2.0/UDP {flooder.place};rport;branch=z9hG4bKflood\r\n"
            flood = request("OPTIONS", registrar, carol, more=via).encode()
            for _ in range(5):
                for _ in range(1000):
                    flooder.send(flood)
                assert user.register(registrar, carol, "carol", "secret-carol") == 200
            assert log.read_text().count("too many requests") in (1, 2)
            eventually(lambda: _served(flooder, registrar, carol), "the flooder is served again")
        with contextlib.ExitStack() as stack:
            strangers = [stack.enter_context(SipClient(sip_lab["ext"], sip_lab.external)) for _ in range(50)]
            for method in ("REGISTER", "INVITE", "OPTIONS", "BYE"):
                for stranger in strangers:
                    via = f"Via: SIP/2.0/UDP {stranger.place};rport;branch=z9hG4bK{method}\r\n"
                    flood = request(method, registrar, "sip:me@203.0.113.2", more=via).encode()
                    for _ in range(40):
                        stranger.send(flood)
                assert user.register(registrar, carol, "carol", "secret-carol") == 200
            assert "too many requests from 203.0.113.2" in log.read_text()
            eventually(lambda: _served(strangers[0], registrar, carol), "the stranger is served again")
            for _ in range(300):
                connection = stack.enter_context(sip_lab["ext"].socket(socket.SOCK_STREAM))
                connection.connect((sip_lab.external, 5060))
            with netns.enter(sip_lab["phone2"].namespace):
                assert probe.ask(sip_lab.external, 5060, "sip-tcp", 5).outcome == "answered"
            assert user.register(registrar, carol, "carol", "secret-carol") == 200


def test_one_sender_cannot_take_all_connections(sip_lab: Lab) -> None:
    """A stranger opens more TCP connections than there are places, and holds them; a phone gets one, and keeps it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * PLACES, max(hard, 2 * PLACES)))
    try:
        with contextlib.ExitStack() as stack, netns.enter(sip_lab["ext"].namespace):
            for _ in range(PLACES + 500):
                connection = stack.enter_context(socket.socket())
                # Kamailio closes what is beyond its places at once.
                with contextlib.suppress(ConnectionError):
                    connection.connect((sip_lab.external, 5060))
            with netns.enter(sip_lab["phone2"].namespace):
                # Silence of 30 s ends the stranger's in any case.
                deadline = time.monotonic() + 25
                while probe.ask(sip_lab.external, 5060, "sip-tcp", 2).outcome != "answered":
                    assert time.monotonic() < deadline, "the phone finds no place"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _served(client: SipClient, registrar: str, user: str) -> bool:
    try:
        return client.register(registrar, user, "carol", "secret-carol") == 200
    except TimeoutError:
        return False


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_torture_messages_break_nothing(sip_lab: Lab, transport: str) -> None:
    """One of every kind that RFC 4475 lists: the same processes go on to serve others, whatever came before."""
    before, processes = _ask(sip_lab, "status"), _kamailio(sip_lab["sip"])
    options = request("OPTIONS", f"sip:{sip_lab.external}", "sip:me@203.0.113.2")
    with SipClient(sip_lab["ext"], sip_lab.external) as stranger:
        for kind, message in MESSAGES.items():
            for _ in range(8 if transport == "udp" else 1):  # Kamailio has four workers for UDP.
                stranger.send(message) if transport == "udp" else _send_by_tcp(sip_lab, message)
            for _ in range(4):
                assert stranger.ask(options) == 200, kind
    after = _ask(sip_lab, "status")
    assert (after["pid"], after["restarts"]) == (before["pid"], before["restarts"])
    assert _kamailio(sip_lab["sip"]) == processes


def _send_by_tcp(lab: Lab, message: bytes) -> None:
    with lab["ext"].socket(socket.SOCK_STREAM) as connection:
        connection.connect((lab.external, 5060))
        # It may have seen enough before the end.
        with contextlib.suppress(OSError):
            connection.sendall(message)


def test_the_redirect_server_names_the_combination_address(sip_lab: Lab, alice: SipPhone, ext: SipPhone) -> None:
    """Claims 11, 12, 32, 33, 34: 302 with the combination network address, and the call completes directly."""
    sip = sip_lab["sip"]
    _set(sip, '"proxy"', '"redirect"')
    try:
        with SipClient(sip_lab["ext"], sip_lab.external) as caller:
            answer = caller.exchange(request("INVITE", alice.identity, "sip:me@203.0.113.2"))
        assert answer.startswith("SIP/2.0 302 ")
        assert re.search(rf"Contact: <sip:alice[^>]*@{sip_lab.external}:{alice.ports.first}", answer)
        assert alice.direct.endswith(f":{alice.ports.first}")
        converse(ext, alice, alice.identity)
    finally:
        _set(sip, '"redirect"', '"proxy"')


def test_down_leaves_nothing(sip_lab: Lab) -> None:
    sip = sip_lab["sip"]
    before = _ask(sip_lab, "status")
    sip.dnatctl("down")
    try:
        clean = snapshot(sip.namespace)
        assert not Path(f"/proc/{before['pid']}").exists()
        assert not Path(f"/run/dnat/{sip.namespace}").exists()
        assert sip.run("ss", "-Hlntu").stdout == ""
        sip.dnatctl("up")
        os.kill(sip.pid(), signal.SIGKILL)
        eventually(lambda: sip.dnatctl("status", code=None).returncode == 5, "the daemon is dead")
        sip.dnatctl("down")
        assert sip.run("ss", "-Hlntu").stdout == ""
        assert differences(clean, snapshot(sip.namespace)) == []
    finally:
        sip.dnatctl("up")
