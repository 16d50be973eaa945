"""The tools that a network administrator reaches for first: traceroute, mtr, iperf3, in both directions."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from nodes import Lab, Node, eventually

from dnat.system import netns

ROUTER_LAN, ROUTER_WAN = "10.66.0.1", "203.0.113.1"
IPERF_PORT = 5300


def hops(traced: str) -> list[str]:
    """The address of each hop, in the output of ``traceroute -n -q 1``."""
    return [line.split()[1] for line in traced.splitlines()[1:]]


@pytest.mark.parametrize("method", ["-U", "-I", "-T"], ids=["UDP", "ICMP", "TCP"])
def test_traceroute_to_the_outside(lab: Lab, method: str) -> None:
    traced = lab["phone1"].run("traceroute", "-n", "-q", "1", "-m", "5", "-w", "5", method, lab.ext).stdout
    assert hops(traced) == [ROUTER_LAN, lab.ext]


@pytest.mark.parametrize("method", ["-U", "-T"], ids=["UDP", "TCP"])
def test_traceroute_from_the_outside(lab: Lab, method: str) -> None:
    """To a port, not to an address alone: it is the port that says who is asked."""
    port = str(lab["phone1"].ports("ephemeral").last)
    options = ("-n", "-q", "1", "-m", "5", "-w", "5", method, "-p", port)
    traced = lab["ext"].run("traceroute", *options, lab.external).stdout
    assert hops(traced) == [ROUTER_WAN, lab.external]


def test_mtr(lab: Lab) -> None:
    said = lab["phone1"].run("mtr", "--json", "-n", "-c", "3", "-i", "0.2", lab.ext).stdout
    found = json.loads(said)["report"]["hubs"]
    assert [(hub["host"], hub["Loss%"]) for hub in found] == [(ROUTER_LAN, 0.0), (lab.ext, 0.0)]


def iperf3(server: Node, client: Node, *options: str) -> dict[str, Any]:
    """The client's summary of one test, with a server for it alone: one still at the test before turns it away."""
    with netns.enter(server.namespace):
        process = subprocess.Popen(
            ["iperf3", "-s", "-1", "-p", str(IPERF_PORT)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    try:
        eventually(lambda: server.run("ss", "-Hltn", f"sport = :{IPERF_PORT}").stdout, "iperf3 listens", 20)
        said = json.loads(client.run("iperf3", "-J", "-c", server.address, "-p", str(IPERF_PORT), *options).stdout)
        assert "error" not in said, said
        process.wait(20)
        summary: dict[str, Any] = said["end"]
        return summary
    finally:
        process.kill()
        process.wait(20)


@pytest.mark.parametrize("port", [None, 4000], ids=["native", "translated"])
def test_iperf3(lab: Lab, port: int | None) -> None:
    """Both ways, TCP in bulk and UDP at the pace of some calls."""
    phone, ext = lab["phone1"], lab["ext"]
    for number, way in enumerate(([], ["-R"])):
        options = [*way, "--cport", str(port + number * 10)] if port else way
        assert iperf3(ext, phone, *options, "-t", "1")["sum_received"]["bytes"] > 1_000_000
        paced = iperf3(ext, phone, *options, "-u", "-b", "2M", "-l", "200", "-n", "300K")["sum"]
        assert (paced["lost_packets"], paced["packets"] >= 1500) == (0, True)
