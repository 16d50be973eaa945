"""Reading calls out of captures: messages, streams, fragments, and addresses that nobody leased."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from sip_scene import EXT, PHONE, Scene, add_call, sdp, sip

from dnat.capture.calls import analyse, parse_sip, read_traffic, unleased_addresses
from dnat.capture.frames import Packet, read_packets
from dnat.capture.rtp import Endpoint
from dnat.errors import UsageError
from dnat.types import PortRange

LEASED = {IPv4Address(PHONE): [PortRange(20000, 20015)]}
OUTSIDE = [IPv4Network("203.0.113.0/24")]


def test_a_call_is_found_with_its_messages_and_both_streams(scene: Scene, tmp_path: Path) -> None:
    add_call(scene)
    (call,) = read_traffic(scene.write(tmp_path / "a.pcap")).calls
    assert [m.summary for m in call.messages] == [
        "INVITE",
        "180 Ringing",
        "200 Answering",
        "ACK",
        "BYE",
        "200 OK",
    ]
    assert (str(call.caller), str(call.callee)) == (f"{PHONE}:20000", f"{EXT}:5060")
    assert call.messages[0].inside == f"contact {PHONE}:20000 · audio to {PHONE}:20002 RTP/AVP"
    assert call.answered_at == pytest.approx(call.messages[2].at)
    there = call.stream_to(IPv4Address(EXT), 40000)
    back = call.stream_to(IPv4Address(PHONE))
    assert there and back
    assert (there.packets, there.lost, there.codec, there.ssrc) == (100, 0, "PCMU/8000", 1)
    assert (back.packets, back.lost, back.ssrc) == (100, 0, 2)
    assert there.looks_encrypted is False and there.secure_profile is False


def test_srtp_is_told_by_profile_and_by_payload(scene: Scene, tmp_path: Path) -> None:
    add_call(scene, profile="RTP/SAVP", noise=True)
    (call,) = read_traffic(scene.write(tmp_path / "a.pcap")).calls
    assert [(s.secure_profile, s.looks_encrypted) for s in call.streams] == [(True, True)] * 2


def test_a_profile_that_promises_srtp_does_not_make_clear_sound_encrypted(scene: Scene, tmp_path: Path) -> None:
    add_call(scene, profile="RTP/SAVP", noise=False)
    (call,) = read_traffic(scene.write(tmp_path / "a.pcap")).calls
    assert [(s.secure_profile, s.looks_encrypted) for s in call.streams] == [(True, False)] * 2


def test_rtp_that_no_sdp_announced_belongs_to_no_call(scene: Scene, tmp_path: Path) -> None:
    scene.rtp(f"{PHONE}:20002", f"{EXT}:40000", range(10))
    traffic = read_traffic(scene.write(tmp_path / "a.pcap"))
    assert traffic.calls == () and sum(traffic.flows.values()) == 10


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_a_fragmented_invite_is_put_together_in_any_order(scene: Scene, tmp_path: Path, order: tuple[int, ...]) -> None:
    long_sdp = sdp(PHONE, 20002) + "a=x:" + "y" * 2000 + "\r\n"
    whole = scene.udp(f"{PHONE}:20000", f"{EXT}:5060", sip("INVITE sip:ext@a SIP/2.0", "1 INVITE", sdp=long_sdp))
    pieces = fragment(whole[IP], fragsize=700)
    assert len(pieces) == 4
    frames = []
    for index in order:
        frame = Ether() / pieces[index]
        frame.time = whole.time
        frames.append(frame)
    (call,) = read_traffic(scene.write(tmp_path / "a.pcap", frames)).calls
    (message,) = call.messages
    assert message.fragments == 4
    assert message.media[0].endpoint == Endpoint(IPv4Address(PHONE), 20002)


def test_a_datagram_with_a_missing_fragment_is_passed_over(scene: Scene, tmp_path: Path) -> None:
    whole = scene.udp(f"{PHONE}:20000", f"{EXT}:5060", sip("INVITE sip:ext@a SIP/2.0", "1 INVITE") + b"z" * 2000)
    frames = [Ether() / piece for piece in fragment(whole[IP], fragsize=700)]
    del frames[1]
    assert list(read_packets(scene.write(tmp_path / "a.pcap", frames))) == []


def test_only_leased_ports_on_the_wan_are_no_strangers(scene: Scene, tmp_path: Path) -> None:
    add_call(scene)
    assert unleased_addresses(read_traffic(scene.write(tmp_path / "a.pcap")), LEASED, OUTSIDE) == ()


def test_every_place_where_an_unleased_port_shows_is_named(scene: Scene, tmp_path: Path) -> None:
    add_call(scene)
    found = unleased_addresses(
        read_traffic(scene.write(tmp_path / "a.pcap")),
        {IPv4Address(PHONE): [PortRange(20000, 20001)]},
        OUTSIDE,
    )
    assert {(s.port, s.where) for s in found} == {
        (20002, "packet source"),
        (20002, "packet destination"),
        (20002, "INVITE SDP m"),
    }


@pytest.mark.parametrize(
    ("message", "place", "where"),
    [
        (
            sip("INVITE sip:e@h SIP/2.0", "1 INVITE", contact="10.66.0.11:5060"),
            "10.66.0.11:5060",
            "INVITE Contact",
        ),
        (sip("INVITE sip:e@h SIP/2.0", "1 INVITE", via="10.66.0.11:5060"), "10.66.0.11:5060", "INVITE Via"),
        (sip("INVITE sip:e@10.66.0.12 SIP/2.0", "1 INVITE"), "10.66.0.12", "INVITE request"),
        (
            sip("INVITE sip:e@h SIP/2.0", "1 INVITE", sdp=sdp("10.66.0.11", 20002)),
            "10.66.0.11",
            "INVITE SDP o",
        ),
        (
            sip("INVITE sip:e@h SIP/2.0", "1 INVITE", sdp=sdp("10.66.0.11", 20002)),
            "10.66.0.11",
            "INVITE SDP c",
        ),
        (
            sip("INVITE sip:e@h SIP/2.0", "1 INVITE", sdp=sdp("10.66.0.11", 20002)),
            "10.66.0.11:20002",
            "INVITE SDP m",
        ),
        (sip("INVITE sip:e@h SIP/2.0", "1 INVITE", sdp=sdp(PHONE, 30000)), f"{PHONE}:30000", "INVITE SDP m"),
    ],
)
def test_an_inner_address_is_found_wherever_it_hides(
    scene: Scene, tmp_path: Path, message: bytes, place: str, where: str
) -> None:
    scene.sip(f"{PHONE}:20000", f"{EXT}:5060", message)
    found = unleased_addresses(read_traffic(scene.write(tmp_path / "a.pcap")), LEASED, OUTSIDE)
    assert f"{place} in {where}" in [str(stranger) for stranger in found]


def test_addresses_of_packets_without_ports_are_judged_too(scene: Scene, tmp_path: Path) -> None:
    frames = [Ether() / IP(src=source, dst=EXT) / ICMP() for source in (PHONE, "10.66.0.11")]
    found = unleased_addresses(read_traffic(scene.write(tmp_path / "a.pcap", frames)), LEASED, OUTSIDE)
    assert [str(stranger) for stranger in found] == ["10.66.0.11 in packet source"]


def test_version_numbers_are_no_addresses(scene: Scene, tmp_path: Path) -> None:
    message = sip("INVITE sip:e@h SIP/2.0", "1 INVITE").replace(b"v1.0.0", b"v1.2.3.4 build 1.2.3.4.5")
    scene.sip(f"{PHONE}:20000", f"{EXT}:5060", message)
    assert unleased_addresses(read_traffic(scene.write(tmp_path / "a.pcap")), LEASED, OUTSIDE) == ()


def test_the_unspecified_address_names_nobody(scene: Scene, tmp_path: Path) -> None:
    message = sip("BYE sip:e@h SIP/2.0", "2 BYE").replace(b"User-Agent: ", b"X-RTP-Stat: IP=0.0.0.0:35846\r\nServer: ")
    scene.sip(f"{PHONE}:20000", f"{EXT}:5060", message)
    assert unleased_addresses(read_traffic(scene.write(tmp_path / "a.pcap")), LEASED, OUTSIDE) == ()


def test_a_file_that_is_no_capture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    path.write_text("not a capture")
    with pytest.raises(UsageError, match="no capture file"):
        read_traffic(path)
    with pytest.raises(UsageError, match=r"missing\.pcap cannot be read: No such file"):
        read_traffic(tmp_path / "missing.pcap")


@given(data=st.data())
def test_mutated_sip_never_raises(data: st.DataObject) -> None:
    message = bytearray(sip("INVITE sip:e@h SIP/2.0", "1 INVITE", sdp=sdp(PHONE, 20002)))
    for _ in range(data.draw(st.integers(1, 5))):
        position = data.draw(st.integers(0, len(message) - 1))
        message[position : position + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    place = Endpoint(IPv4Address(PHONE), 20000)
    packet = Packet(0.0, place.address, place.address, 17, 20000, 20000, bytes(message), 1)
    parse_sip(packet, place, place)
    unleased_addresses(analyse([packet]), LEASED, OUTSIDE)


@given(frame=st.binary(max_size=80))
def test_any_frame_is_read_or_passed_over(frame: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "a.pcap"
    head = Ether(type=0x0800) / Raw(frame)
    Scene().write(path, [head, Ether() / IP() / UDP() / Raw(b"x")])
    assert len(list(read_packets(path))) >= 1
