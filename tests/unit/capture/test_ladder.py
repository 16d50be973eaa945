"""The picture: well-formed, complete, and drawn where things happened."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sip_scene import EXT, PHONE, Scene, add_call

from dnat.capture.calls import Call, read_traffic
from dnat.capture.ladder import LadderNode, SceneCall, StreamSeen, draw_ladder
from dnat.capture.ladder import Scene as LadderScene
from dnat.types import PortRange

SVG = "{http://www.w3.org/2000/svg}"
SHARED = IPv4Address(PHONE)
PHONE1 = LadderNode("phone1", (PHONE, "ports 20000–20015"), ((SHARED, PortRange(20000, 20015)),))
PHONE2 = LadderNode("phone2", (PHONE, "ports 20016–20031"), ((SHARED, PortRange(20016, 20031)),))
ROUTER = LadderNode("router", ("forwards by port",))
OUTSIDE = LadderNode("ext", (EXT,), ((IPv4Address(EXT), None),))


@pytest.fixture
def call(scene: Scene, tmp_path: Path) -> Call:
    add_call(scene, profile="RTP/SAVP", noise=True)
    (call,) = read_traffic(scene.write(tmp_path / "a.pcap")).calls
    return call


def draw(call: Call, *, sent: int = 100, title: str = "phone1 calls ext", far: LadderNode = OUTSIDE) -> str:
    seen = tuple(StreamSeen(stream, sent) for stream in call.streams)
    scene = LadderScene(title, "a note", (SceneCall(call, seen),), "heard")
    return draw_ladder([PHONE1, PHONE2], ROUTER, [far], [scene], "A caption.")


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_names_messages_and_addresses_are_there(call: Call) -> None:
    shown = texts(draw(call))
    for wanted in (
        "phone1",
        "phone2",
        "router",
        "ext",
        "INVITE",
        "180 Ringing",
        "BYE",
        ":20000",
        ":5060",
        "A caption.",
    ):
        assert wanted in shown
    assert f"contact {PHONE}:20000 · audio to {PHONE}:20002 RTP/SAVP" in shown


def test_streams_tell_endpoints_counts_and_encryption(call: Call) -> None:
    shown = " | ".join(texts(draw(call, sent=103)))
    assert f"SRTP {PHONE}:20002 → {EXT}:40000 · PCMU/8000" in shown
    assert "103 sent · 100 received · 3 lost" in shown


def test_rows_keep_the_order_of_time(call: Call) -> None:
    shown = texts(draw(call))
    order = [shown.index(label) for label in ("INVITE", "180 Ringing", "200 Answering", "ACK", "BYE", "200 OK")]
    assert order == sorted(order)


def test_repeats_are_drawn_once_and_counted(scene: Scene, tmp_path: Path) -> None:
    add_call(scene, packets=1)
    invite = scene.packets[0].copy()
    invite.time += 0.5
    scene.packets.insert(1, invite)
    (call,) = read_traffic(scene.write(tmp_path / "a.pcap")).calls
    shown = texts(draw(call))
    assert "INVITE (sent 2 times)" in shown and "INVITE" not in shown


def test_a_hairpin_turns_at_the_router(call: Call) -> None:
    straight = draw(call)
    # The same packets, but the other end is now a phone behind the same router.
    near = LadderNode("phone2", (EXT,), ((IPv4Address(EXT), None),))
    scene = LadderScene("phone1 calls phone2", "", (SceneCall(call, ()),))
    turned = draw_ladder([PHONE1, near], ROUTER, [OUTSIDE], [scene], "")
    corners = [path.get("d", "").count("L") for path in ElementTree.fromstring(turned).iter(f"{SVG}path")]
    assert 3 in corners
    assert 3 not in [
        path.get("d", "").count("L")
        for path in ElementTree.fromstring(straight).iter(f"{SVG}path")
        if path.get("fill") == "none"
    ]


def test_text_from_the_wire_cannot_break_the_picture(call: Call) -> None:
    picture = draw(call, title='<script>alert("&")</script>')
    assert '<script>alert("&")</script>' in texts(picture)


def test_everything_lies_inside(call: Call) -> None:
    root = ElementTree.fromstring(draw(call))
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    for element in root.iter(f"{SVG}text"):
        assert 0 <= float(element.get("x", "-1")) <= width
        assert 0 <= float(element.get("y", "-1")) <= height
