"""What surrounds a real phone: settings, control socket, log, and listening to what it recorded."""

from __future__ import annotations

import array
import json
import math
import random
import socket
import wave
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnat.lab.phone import LoggedCall, PhoneSettings, parse_log
from dnat.lab.phone_control import ControlConnection, split_netstrings
from dnat.lab.tone import listen
from dnat.types import PortRange

ME, PEER = "sip:phone1@198.51.100.1:20000", "sip:ext@203.0.113.2:5060"

LOG = """\
baresip is ready.
audio: Set audio decoder: PCMU 8000Hz 1ch
sndfile: dumping encode audio to /tmp/r/dump-07-enc.wav
sndfile: dumping decode audio to /tmp/r/dump-07-dec.wav
phone1@198.51.100.1: Call established: sip:ext@203.0.113.2:5060
stream: incoming rtp for 'audio' established, receiving from 203.0.113.2:40010
sip:phone1@198.51.100.1:20000: Call with sip:ext@203.0.113.2:5060 terminated (duration: 3 secs)

audio           Transmit:     Receive:
packets:            161          160
avg. bitrate:      64.4         64.0  (kbit/s)
errors:               1            2
"""


def settings(tmp_path: Path, rtp: PortRange) -> PhoneSettings:
    return PhoneSettings("phone1", "nowhere", IPv4Address("198.51.100.1"), 20000, rtp, tmp_path)


def test_uris_carry_the_combination_network_address(tmp_path: Path) -> None:
    phone = settings(tmp_path, PortRange(20002, 20015))
    assert phone.uri == ME
    assert phone.secure_uri == "sip:phone1-srtp@198.51.100.1:20000"


@pytest.mark.parametrize("rtp", [PortRange(20003, 20015), PortRange(20002, 20014)])
def test_rtp_ports_that_baresip_would_leave_are_refused(tmp_path: Path, rtp: PortRange) -> None:
    with pytest.raises(ValueError, match="begin even and end odd"):
        settings(tmp_path, rtp)


def test_a_finished_call_is_read_from_the_log() -> None:
    assert parse_log(LOG, ME, PEER) == [LoggedCall(161, 160, 3, "PCMU 8000Hz", Path("/tmp/r/dump-07-dec.wav"))]


def test_calls_of_others_and_unfinished_ones_are_left_out() -> None:
    assert parse_log(LOG, "sip:phone1-srtp@198.51.100.1:20000", PEER) == []
    assert parse_log(LOG, ME, "sip:ext2@203.0.113.2:5060") == []
    assert parse_log(LOG.partition("errors:")[0], ME, PEER) == []
    assert parse_log(LOG.partition("sip:phone1")[0], ME, PEER) == []


def test_colours_of_warnings_do_not_hide_the_next_line() -> None:
    coloured = LOG.replace("phone1@198.51.100.1: Call est", "\x1b[31msrtp: oh\n\x1b[;mphone1@198.51.100.1: Call est")
    assert parse_log(coloured, ME, PEER) == parse_log(LOG, ME, PEER)


def test_calls_with_the_same_peer_stay_in_order() -> None:
    again = LOG.replace("dump-07", "dump-11").replace("161", "99")
    assert [(call.sent, call.recording.name) for call in parse_log(LOG + again, ME, PEER)] == [
        (161, "dump-07-dec.wav"),
        (99, "dump-11-dec.wav"),
    ]


@given(messages=st.lists(st.binary(max_size=30), max_size=6), cut=st.integers(0, 200))
def test_netstrings_come_out_however_they_were_cut(messages: list[bytes], cut: int) -> None:
    stream = b"".join(b"%d:%s," % (len(message), message) for message in messages)
    first, rest = split_netstrings(stream[:cut])
    second, end = split_netstrings(rest + stream[cut:])
    assert first + second == messages and end == b""


@pytest.mark.parametrize("data", [b"x:abc,", b"3:abcd", b"01234567890123"])
def test_other_things_are_no_netstrings(data: bytes) -> None:
    with pytest.raises(ValueError):
        split_netstrings(data)


def test_answers_find_their_questions_and_events_are_kept() -> None:
    near, far = socket.socketpair()
    connection = ControlConnection(near)
    event = {"event": True, "type": "CALL_ESTABLISHED", "peeruri": PEER, "id": "c0ffee"}
    answer = {"response": True, "ok": True, "data": "done", "token": "1"}
    far.sendall(b"".join(b"%d:%s," % (len(text), text) for text in (json.dumps(m).encode() for m in (event, answer))))
    said = connection.command("dial", PEER)
    assert said is not None and said["data"] == "done"
    asked = split_netstrings(far.recv(4096))[0]
    assert json.loads(asked[0]) == {"command": "dial", "params": PEER, "token": "1"}
    found = connection.await_event(lambda e: e.type == "CALL_ESTABLISHED", 0, 1.0)
    assert found is not None and (found.peer, found.call_id) == (PEER, "c0ffee")
    assert connection.await_event(lambda e: e.type == "CALL_ESTABLISHED", 1, 0.01) is None
    far.close()
    assert connection.command("hangup") is None
    connection.close()


def record(path: Path, tones: dict[float, float], seconds: float = 2.0, noise: float = 0.0) -> Path:
    """A recording at 8 kHz of tones (hertz: amplitude) and noise."""
    rng = random.Random(1)
    samples = array.array("h")
    for n in range(int(8000 * seconds)):
        value = sum(size * math.sin(math.tau * tone * n / 8000) for tone, size in tones.items())
        samples.append(int(value + noise * rng.gauss(0, 1)))
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(samples.tobytes())
    return path


def test_the_tone_is_heard(tmp_path: Path) -> None:
    heard = listen(record(tmp_path / "a.wav", {440: 8000}, noise=500), 440)
    assert heard.seconds == pytest.approx(2.0) and heard.purity > 0.9 and heard.lasted(1.9)


@pytest.mark.parametrize(
    ("tones", "noise"),
    [({}, 0.0), ({660: 8000}, 0.0), ({440: 8000, 660: 8000}, 0.0), ({}, 5000.0), ({440: 20}, 0.0)],
)
def test_silence_noise_and_other_voices_are_not_the_tone(
    tmp_path: Path, tones: dict[float, float], noise: float
) -> None:
    assert listen(record(tmp_path / "a.wav", tones, noise=noise), 440).seconds == 0


def test_a_tone_with_a_gap_did_not_last(tmp_path: Path) -> None:
    with wave.open(str(record(tmp_path / "a.wav", {440: 8000}, seconds=2)), "rb") as sound:
        frames = sound.readframes(16000)
    with wave.open(str(tmp_path / "b.wav"), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(frames + bytes(2 * 8000 * 2) + frames)
    heard = listen(tmp_path / "b.wav", 440)
    assert heard.seconds == pytest.approx(4.0, abs=0.2) and heard.length == pytest.approx(6.0)
    assert not heard.lasted(2.0)
