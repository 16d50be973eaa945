"""The picture of a call in a file: whose column is whose is read from the messages."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from xml.etree import ElementTree

from sip_scene import EXT, PHONE, Scene, add_call, sdp, sip

from dnat.capture import call_ladder
from dnat.capture.calls import read_traffic

SVG = "{http://www.w3.org/2000/svg}"
SERVER, CALLER, CALLEE = f"{PHONE}:5060", f"{PHONE}:20000", f"{EXT}:5060"
INVITE = "INVITE sip:ext@203.0.113.2:5060 SIP/2.0"


def heads(scene: Scene, path: Path) -> list[tuple[str, float]]:
    """Names over the columns from left to right, with their places."""
    calls = call_ladder.choose(read_traffic(scene.write(path)), "all")
    picture = ElementTree.fromstring(call_ladder.draw(calls, [IPv4Address(PHONE)]))
    found = [text for text in picture.iter(f"{SVG}text") if text.get("y") == "66.0"]
    return sorted(((text.text or "", float(text.get("x", 0))) for text in found), key=lambda head: head[1])


def test_a_direct_call_has_the_names_of_both_users(scene: Scene, tmp_path: Path) -> None:
    add_call(scene)
    assert [name for name, _ in heads(scene, tmp_path / "a.pcap")] == ["phone1", "router", "ext"]


def test_who_passes_an_invitation_on_is_a_proxy_beside_the_router(scene: Scene, tmp_path: Path) -> None:
    offer, answer = sdp(PHONE, 20002), sdp(EXT, 40000)
    for source, destination in ((CALLER, SERVER), (SERVER, CALLEE)):
        scene.sip(source, destination, sip(INVITE, "7 INVITE", sdp=offer))
    for source, destination in ((CALLEE, SERVER), (SERVER, CALLER)):
        scene.sip(source, destination, sip("SIP/2.0 200 OK", "7 INVITE", contact=CALLEE, sdp=answer))
    scene.rtp(f"{PHONE}:20002", f"{EXT}:40000", [1, 2, 4, 5])
    # The one who was called invites anew: that makes him no proxy.
    for source, destination in ((CALLEE, SERVER), (SERVER, CALLER)):
        scene.sip(source, destination, sip("INVITE sip:phone1@198.51.100.1:20000 SIP/2.0", "1 INVITE", sdp=answer))
    found = heads(scene, tmp_path / "a.pcap")
    assert [name for name, _ in found] == ["phone1", "SIP proxy", "router", "ext"]
    (call,) = read_traffic(tmp_path / "a.pcap").calls
    assert call_ladder.title(call) == "phone1@198.51.100.1:20000 calls ext@203.0.113.2:5060"
    drawn = call_ladder.draw([call], [IPv4Address(PHONE)])
    assert "5 sent · 4 received · 1 lost" in drawn and "signalling only" in drawn


def test_who_answers_302_is_a_redirect_server(scene: Scene, tmp_path: Path) -> None:
    outside, server, phone = f"{EXT}:5060", SERVER, CALLER
    scene.sip(outside, server, sip(INVITE, "7 INVITE", sdp=sdp(EXT, 40000)))
    scene.sip(server, outside, sip("SIP/2.0 302 Moved Temporarily", "7 INVITE", contact=phone))
    scene.sip(outside, phone, sip(INVITE, "8 INVITE", sdp=sdp(EXT, 40000)))
    scene.sip(phone, outside, sip("SIP/2.0 200 OK", "8 INVITE", contact=phone, sdp=sdp(PHONE, 20002)))
    names = [name for name, _ in heads(scene, tmp_path / "a.pcap")]
    assert names == ["ext", "redirect server", "router", "phone1"], "the scene's To is ext, its From phone1"


def test_a_message_on_its_way_to_the_router_and_back_was_sent_once(scene: Scene, tmp_path: Path) -> None:
    trying = sip("SIP/2.0 100 trying -- your call is important to us", "7 INVITE")
    for after in (0.0, 0.001, 0.5, 0.001):
        scene.clock += after
        scene.sip(CALLER, SERVER, sip(INVITE, "7 INVITE", sdp=sdp(PHONE, 20002)))
    scene.sip(SERVER, CALLER, trying)
    (call,) = read_traffic(scene.write(tmp_path / "a.pcap")).calls
    drawn = call_ladder.draw([call], [IPv4Address(PHONE)])
    assert "INVITE (sent 2 times)" in drawn
    assert "100 trying -- your …" in drawn and "important" not in drawn
