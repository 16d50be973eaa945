"""Calls between real phones, directly and by server: transports, encryption, and what happens during a call."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from nodes import Lab, eventually
from scapy.layers.inet import IP, UDP
from scapy.utils import PcapReader
from sip_phones import SipPhone, converse

from dnat.capture.calls import Call, read_traffic
from dnat.capture.recorder import Recorder
from dnat.types import PortRange


@pytest.fixture
def wan(sip_lab: Lab, tmp_path: Path) -> Recorder:
    """A capture of the router's WAN link; the test enters it."""
    return Recorder(sip_lab["router"].namespace, "wan", tmp_path / "wan.pcap")


def _the_call(recorder: Recorder, call_id: str) -> Call:
    call = read_traffic(recorder.path).call(call_id)
    assert call is not None, "the call was seen outside"
    return call


def _speaks_for_itself(lab: Lab, phone: SipPhone, call: Call, encrypted: bool) -> None:
    """Contact, SDP and RTP name the phone's combination network address; no packet was lost."""
    own = [m for m in call.messages if str(m.source.address) == lab.external and m.media]
    assert own, "the phone sent an SDP"
    for message in own:
        (media,) = message.media
        assert str(media.endpoint.address) == lab.external and media.endpoint.port in phone.ports
        assert str(lab.external) in (message.header("Contact") or "")
        assert f":{phone.ports.first}" in (message.header("Contact") or "")
    out = next(s for s in call.streams if str(s.source.address) == lab.external)
    back = next(s for s in call.streams if str(s.destination.address) == lab.external)
    assert out.source.port in phone.ports and back.destination.port in phone.ports
    assert (out.lost, back.lost) == (0, 0)
    assert out.packets > 80 and back.packets > 80
    assert (out.looks_encrypted, back.looks_encrypted) == (encrypted, encrypted)


@pytest.mark.parametrize("encryption", ["none", "sdes"])
@pytest.mark.parametrize("inward", [False, True], ids=["out", "in"])
def test_a_direct_call(sip_lab: Lab, tmp_path: Path, wan: Recorder, encryption: str, inward: bool) -> None:
    """Claims 1, 4, 5, 6, 8, 14, 15, 22, 23, 24, 26, 27, 28, 35, 37, 38, 39, 40, 41: the combination address alone
    sets up the call, in clear or encrypted."""
    with (
        SipPhone(sip_lab["phone1"], tmp_path / "alice", 440).provision("alice", "--encryption", encryption) as alice,
        SipPhone(sip_lab["ext"], tmp_path / "ext", 880).outside(encryption=encryption) as ext,
        wan,
    ):
        talk = 2.5
        call_id = converse(ext, alice, alice.direct, talk) if inward else converse(alice, ext, ext.identity, talk)
    _speaks_for_itself(sip_lab, alice, _the_call(wan, call_id), encryption != "none")


def test_a_direct_call_with_dtls(sip_lab: Lab, tmp_path: Path, wan: Recorder) -> None:
    """Claims 15, 28, 41: keys agreed on by the phones themselves (RFC 5764), which no server ever sees.

    baresip 1.0.0 loses the race of a ClientHello with the answer now and then, and then speaks in clear, on any
    network. So there are several calls, and all must be whole, one of them encrypted.
    """
    with (
        SipPhone(sip_lab["phone1"], tmp_path / "alice", 440).provision("alice", "--encryption", "dtls") as alice,
        SipPhone(sip_lab["ext"], tmp_path / "ext", 880).outside(encryption="dtls") as ext,
        wan,
    ):
        call_ids = [converse(ext, alice, alice.direct, 3.5), converse(alice, ext, ext.identity, 3.5)]
        call_ids.append(converse(ext, alice, alice.direct, 3.5))
    calls = [_the_call(wan, call_id) for call_id in call_ids]
    encrypted = [call for call in calls if all(stream.looks_encrypted for stream in call.streams)]
    assert encrypted
    for call in calls:
        _speaks_for_itself(sip_lab, alice, call, call in encrypted)


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_signalling_over_connections_through_the_proxy(sip_lab: Lab, tmp_path: Path, transport: str) -> None:
    """Claims 6, 24, 39: TCP ports as well as UDP ports."""
    with (
        SipPhone(sip_lab["phone1"], tmp_path / "alice", 440).provision("alice", "--transport", transport) as alice,
        SipPhone(sip_lab["phone2"], tmp_path / "bob", 660).provision("bob", "--transport", transport) as bob,
        SipPhone(sip_lab["ext"], tmp_path / "ext", 880).outside() as ext,
    ):
        alice.registered()
        bob.registered()
        converse(ext, alice, f"sip:alice@{sip_lab.external}")
        converse(alice, bob, f"{bob.identity};transport={transport}")


def test_two_phones_call_the_same_outside_phone_at_once(sip_lab: Lab, tmp_path: Path) -> None:
    with (
        SipPhone(sip_lab["phone1"], tmp_path / "alice", 440).provision("alice") as alice,
        SipPhone(sip_lab["phone2"], tmp_path / "bob", 660).provision("bob") as bob,
        SipPhone(sip_lab["ext"], tmp_path / "ext", 880).outside() as ext,
    ):
        calls = [(phone, phone.call(ext.identity)) for phone in (alice, bob)]
        for phone, call_id in calls:
            phone.wait_for("CALL_RTPESTAB", 0, call_id)
        time.sleep(2.0)
        for phone, call_id in calls:
            phone.command("hangup")
            ext.wait_for("CALL_CLOSED", 0, call_id)
            phone.hears(ext.tone)


def test_marks_of_voice_and_signalling_are_kept(sip_lab: Lab, tmp_path: Path) -> None:
    """EF for RTP and CS5 for the proxy's SIP (RFC 4594): as they were sent, also at the other end."""
    recorders = {
        "near": Recorder(sip_lab["phone1"].namespace, "eth0", tmp_path / "near.pcap"),
        "far": Recorder(sip_lab["ext"].namespace, "eth0", tmp_path / "far.pcap"),
    }
    with (
        SipPhone(sip_lab["phone1"], tmp_path / "alice", 440).provision("alice") as alice,
        SipPhone(sip_lab["ext"], tmp_path / "ext", 880).outside() as ext,
        recorders["near"],
        recorders["far"],
    ):
        alice.registered()
        converse(ext, alice, f"sip:alice@{sip_lab.external}")
    for recorder in recorders.values():
        with PcapReader(str(recorder.path)) as packets:
            datagrams = [packet[IP] for packet in packets if IP in packet and UDP in packet]
        voice = [d.tos for d in datagrams if d[UDP].dport % 2 == 0 and bytes(d[UDP].payload)[:1] == b"\x80"]
        proxied = [d.tos for d in datagrams if d[UDP].sport == 5060 and str(d.src) == sip_lab.external]
        assert len(voice) > 150 and set(voice) == {46 << 2}
        assert proxied and set(proxied) == {40 << 2}


def _ringing(phone: SipPhone) -> SipPhone:
    phone.answers = False
    return phone


def test_a_call_is_cancelled_before_the_answer(sip_lab: Lab, tmp_path: Path) -> None:
    with (
        _ringing(SipPhone(sip_lab["phone1"], tmp_path / "alice", 440).provision("alice")) as alice,
        SipPhone(sip_lab["ext"], tmp_path / "ext", 880).outside() as ext,
    ):
        alice.registered()
        mark = ext.dial(f"sip:alice@{sip_lab.external}")
        call_id = alice.wait_for("CALL_INCOMING").call_id
        ext.wait_for("CALL_RINGING", mark)
        ext.command("hangup")
        ended = alice.wait_for("CALL_CLOSED", 0, call_id)
        assert not [e for e in alice.events if e.type == "CALL_ESTABLISHED"], ended


def test_hold_and_resume(sip_lab: Lab, tmp_path: Path, wan: Recorder) -> None:
    """A re-INVITE takes the media away and brings it back, through the proxy."""
    with (
        SipPhone(sip_lab["phone1"], tmp_path / "alice", 440).provision("alice") as alice,
        SipPhone(sip_lab["ext"], tmp_path / "ext", 880).outside() as ext,
        wan,
    ):
        alice.registered()
        call_id = ext.call(f"sip:alice@{sip_lab.external}")
        alice.wait_for("CALL_RTPESTAB")
        ext.command("hold")
        eventually(lambda: "a=sendonly" in alice.log() or "a=inactive" in alice.log(), "the phone is put on hold")
        ext.command("resume")
        time.sleep(2.5)
        ext.command("hangup")
        alice.wait_for("CALL_CLOSED", 0, call_id)
    call = _the_call(wan, call_id)
    # Each passes the WAN link once; an invitation anew is answered like the first.
    invitations = {m.header("CSeq") for m in call.messages if m.summary == "INVITE"}
    accepted = {m.header("CSeq") for m in call.messages if m.status == 200 and m.method == "INVITE"}
    assert len(invitations) == 3 and accepted == invitations
    picture = tmp_path / "call.svg"
    said = sip_lab["phone1"].dnatctl("capture", "-r", str(wan.path), "--call", call_id[:6], "--ladder", str(picture))
    assert "0 lost" in said.stdout
    drawn = "".join(ET.parse(picture).getroot().itertext())
    assert all(word in drawn for word in ("INVITE", "200 OK", "BYE", f"{sip_lab.external}:5060", "PCMU"))
    resumed = max(m.at for m in call.messages if m.summary == "INVITE")
    for destination in (sip_lab.external, sip_lab.ext):
        stream = max((s for s in call.streams if str(s.destination.address) == destination), key=lambda s: s.last_at)
        assert stream.last_at > resumed + 2.0, f"sound towards {destination} after the call was taken up again"


def test_a_call_goes_on_while_its_lease_is_renewed(sip_lab: Lab, tmp_path: Path) -> None:
    """The block's lease is taken for 60 s, the shortest, and renewed at half of that."""
    phone = sip_lab["phone1"]

    def left(block: PortRange) -> int:
        return next(int(one["expires_in"]) for one in phone.show()["leases"] if one["first"] == block.first)

    with (
        SipPhone(phone, tmp_path / "alice", 440).provision("alice", "--lifetime", "60") as alice,
        SipPhone(sip_lab["ext"], tmp_path / "ext", 880).outside() as ext,
    ):
        call_id = ext.call(alice.direct)
        eventually(lambda: left(alice.ports) <= 45, "time passes", 30)
        eventually(lambda: left(alice.ports) > 50, "the lease is renewed", 40)
        before = alice.recordings()[-1].stat().st_size
        eventually(lambda: alice.recordings()[-1].stat().st_size > before + 8000, "the phone goes on hearing")
        ext.command("hangup")
        alice.wait_for("CALL_CLOSED", 0, call_id)
        alice.hears(ext.tone, 25.0)
        ext.hears(alice.tone, 25.0)
