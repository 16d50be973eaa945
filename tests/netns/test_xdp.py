"""The router's short cut at XDP in a running lab: when it is used, when not, and that it leaves no trace."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nodes import Lab, Node, eventually

from dnat.dataplane import tcx, xdp
from dnat.system import netns

UDP = socket.SOCK_DGRAM
ECHO = 7
SCHED_CLS, XDP = 3, 6
TC_ACT_SHOT, XDP_PASS = 2, 2


def links(node: Node) -> str:
    """Interfaces as ``ip`` shows them, without the counters that change."""
    return node.run("ip", "-d", "link", "show").stdout


def at_xdp(router: Node) -> dict[str, str | None]:
    with netns.enter(router.namespace):
        return {name: xdp.attached(socket.if_nametoindex(name)) for name in ("lan", "wan")}


def configure(router: Node, mode: str) -> None:
    """Start the router anew with another ``xdp`` in its configuration."""
    path = router.dnat_toml
    lines = [line for line in path.read_text().splitlines() if not line.startswith("xdp")]
    path.write_text("\n".join([*lines, f'xdp = "{mode}"', ""]))
    router.dnatctl("down")
    router.dnatctl("up")


@pytest.fixture
def router(xdp_lab: Lab) -> Iterator[Node]:
    """The router of a lab for XDP, which uses XDP again afterwards."""
    node = xdp_lab["router"]
    yield node
    configure(node, "on")
    assert node.show()["router"]["path"] == "xdp"


def talk(lab: Lab, datagrams: int = 5) -> None:
    with lab["phone1"].socket(UDP) as sock:
        for _ in range(datagrams):
            sock.sendto(b"there and back", (lab.ext, ECHO))
            assert sock.recv(100) == b"there and back"


def test_packets_take_the_short_cut(xdp_lab: Lab, foreign_program: Callable[[int, int], Path]) -> None:
    router = xdp_lab["router"]
    assert router.show()["router"] == {"lan": "lan", "wan": "wan", "path": "xdp", "reason": ""}
    assert "XDP" in router.dnatctl("show").stdout
    assert at_xdp(router) == {"lan": "router_lan_xdp", "wan": "router_wan_xdp"}
    talk(xdp_lab)
    # What passes XDP would meet this filter at TC, which drops everything.
    pin = foreign_program(SCHED_CLS, TC_ACT_SHOT)
    with netns.enter(router.namespace):
        for command in ("tc qdisc replace dev wan clsact", f"tc filter add dev wan ingress pref 1 bpf da pinned {pin}"):
            subprocess.run(command.split(), check=True, timeout=20)
    try:
        talk(xdp_lab)
        router.run("ping", "-c", "1", "-W", "1", xdp_lab.ext, code=1)
    finally:
        router.run("tc", "filter", "del", "dev", "wan", "ingress", "pref", "1")
        if tcx.is_supported():
            router.run("tc", "qdisc", "del", "dev", "wan", "clsact")


def test_off_means_off(xdp_lab: Lab, router: Node) -> None:
    configure(router, "off")
    assert router.show()["router"] == {"lan": "lan", "wan": "wan", "path": "tc", "reason": "turned off"}
    assert at_xdp(router) == {"lan": None, "wan": None}
    talk(xdp_lab)


def test_auto_leaves_virtual_cables_to_tc(xdp_lab: Lab, router: Node) -> None:
    configure(router, "auto")
    said = router.show()["router"]
    assert (said["path"], "virtual cable" in said["reason"]) == ("tc", True)
    assert at_xdp(router) == {"lan": None, "wan": None}
    talk(xdp_lab)


def test_a_far_end_that_takes_nothing_means_tc(xdp_lab: Lab, router: Node) -> None:
    ext = xdp_lab["ext"]
    ext.run("ethtool", "-K", "eth0", "gro", "off")
    try:
        configure(router, "on")
        assert router.show()["router"]["reason"] == "the driver of wan does not send what XDP redirects to it"
        assert at_xdp(router) == {"lan": None, "wan": None}
        talk(xdp_lab)
    finally:
        ext.run("ethtool", "-K", "eth0", "gro", "on")


def test_a_far_end_that_stops_taking_is_noticed(xdp_lab: Lab, router: Node) -> None:
    ext = xdp_lab["ext"]
    ext.run("ethtool", "-K", "eth0", "gro", "off")
    try:
        eventually(lambda: router.show()["router"]["path"] == "tc", "the router falls back to TC", seconds=30)
        talk(xdp_lab)
    finally:
        ext.run("ethtool", "-K", "eth0", "gro", "on")


def test_the_program_of_another_stays(xdp_lab: Lab, router: Node, foreign_program: Callable[[int, int], Path]) -> None:
    router.dnatctl("down")
    pin = foreign_program(XDP, XDP_PASS)
    with netns.enter(router.namespace):
        subprocess.run(f"ip link set dev lan xdpdrv pinned {pin}".split(), check=True, timeout=20)
    try:
        router.dnatctl("up")
        assert "has another one" in router.show()["router"]["reason"]
        assert at_xdp(router) == {"lan": None, "wan": None}
        assert "xdp" in router.run("ip", "link", "show", "lan").stdout
        talk(xdp_lab)
        router.dnatctl("down")
        assert "xdp" in router.run("ip", "link", "show", "lan").stdout
    finally:
        router.run(*["ip", "link", "set", "dev", "lan", "xdpdrv", "off"])


def test_down_leaves_no_trace(xdp_lab: Lab, router: Node) -> None:
    router.dnatctl("down")
    assert "xdp" not in links(router)
    router.dnatctl("up")
    assert at_xdp(router) == {"lan": "router_lan_xdp", "wan": "router_wan_xdp"}


def test_down_after_a_crash_leaves_no_trace(xdp_lab: Lab, router: Node) -> None:
    router.run("kill", "-9", str(router.pid()))
    talk(xdp_lab)
    router.dnatctl("down")
    assert "xdp" not in links(router)
