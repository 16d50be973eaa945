"""The claims' other arrangements: the port server apart from the router, or a proxy or redirect server as port server.

The router then is a third network device that is not within the first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from nodes import Lab, Node
from scapy.layers.inet import UDP
from sip_messages import SipClient, request
from sip_phones import SipPhone, converse
from test_claims import packets, passes_unique_below_and_local_again
from test_sip_arrangements import configured

from dnat.capture.calls import read_traffic
from dnat.capture.recorder import Recorder
from dnat.lab import builder, control
from dnat.lab.topology import LAN, Topology
from dnat.pap.messages import AGENT_PORT, SERVER_PORT


@pytest.fixture(scope="module")
def apart(_root: None) -> Iterator[Lab]:
    """A lab whose port server is a machine of its own. Tests leave it as they find it."""
    topology = Topology(prefix=f"dt{os.getpid()}a", phones=1, servers=1, sip="proxy")
    try:
        control.up(topology, lambda _: None)
        yield Lab(topology)
    finally:
        builder.destroy(topology.prefix)


def _configuration(node: Node) -> str:
    return node.dnat_toml.read_text()


def _asks(recorder: Recorder) -> set[tuple[str, str]]:
    """Who asked whom by PAP, and who answered; what a server announces to everybody is neither."""
    seen = packets(recorder.path, lambda p: {p[UDP].sport, p[UDP].dport} == {AGENT_PORT, SERVER_PORT})
    everybody = str(LAN.broadcast_address)
    return {(str(packet.src), str(packet.dst)) for packet in seen if packet.dst != everybody}


def test_claims_7_16_17_25_the_port_server_is_apart_from_the_router(apart: Lab, tmp_path: Path) -> None:
    """Claims 1, 5, 7, 13, 16, 17, 23, 25, 38: the first network device is a port server, the third a router.

    Ports come from the one, packets go by the other, which translates nothing.
    """
    phone, server, router = apart["phone1"], apart["server"], apart["router"]
    assert (server.show()["roles"], router.show()["roles"]) == (["server"], ["router"])
    with Recorder(phone.namespace, "eth0", tmp_path / "pap.pcap") as recorder:
        phone.dnatctl("down")
        phone.dnatctl("up")
    assert {(phone.address, server.address), (server.address, phone.address)} == _asks(recorder)
    passes_unique_below_and_local_again(apart, tmp_path)
    with (
        SipPhone(phone, tmp_path / "alice", 440).provision("alice", "--encryption", "sdes") as alice,
        SipPhone(apart["ext"], tmp_path / "ext", 880).outside(encryption="sdes") as ext,
        Recorder(router.namespace, "wan", tmp_path / "wan.pcap") as wan,
    ):
        call_ids = [converse(alice, ext, ext.identity), converse(ext, alice, alice.direct)]
    for call_id in call_ids:
        call = read_traffic(wan.path).call(call_id)
        assert call is not None
        ends = {end for stream in call.streams for end in (stream.source, stream.destination)}
        assert all(end.port in alice.ports for end in ends if str(end.address) == apart.external)


@pytest.mark.parametrize("mode", ["proxy", "redirect"])
def test_claims_7_9_11_25_the_sip_server_is_the_port_server(apart: Lab, tmp_path: Path, mode: str) -> None:
    """Claims 1, 7, 9, 10, 11, 12, 25, 29, 30, 31, 32, 33, 34: the first network device is the SIP server.

    The phone asks it for ports, registers with it, and is called by way of it; the router knows both as hosts.
    """
    phone, sip, server = apart["phone1"], apart["sip"], apart["server"]
    store = _configuration(server).partition("[store]")[2]
    text = f"""\
roles = ["server", "host", "sip"]
[server]
external_addresses = ["{apart.external}"]
[host]
server = "{sip.address}"
[sip]
mode = "{mode}"
block_rate = 2000
[store]{store}"""
    with ExitStack() as stack:
        phone.dnatctl("down")
        stack.callback(phone.dnatctl, "up")
        stack.enter_context(configured(sip, text))
        # Nobody else gives out ports.
        stack.enter_context(_down(server))
        stack.callback(phone.dnatctl, "down", code=None)
        recorder = stack.enter_context(Recorder(phone.namespace, "eth0", tmp_path / "pap.pcap"))
        config = tmp_path / "phone.toml"
        config.write_text(f'[host]\nserver = "{sip.address}"\n')
        phone.dnatctl("up", "--config", str(config))
        sip.dnatctl("sip", "users", "add", "alice", "--password", "secret-alice")
        with (
            SipPhone(phone, tmp_path / "alice", 440).provision("alice") as alice,
            SipPhone(apart["ext"], tmp_path / "ext", 880).outside() as ext,
            SipClient(apart["ext"], apart.external) as stranger,
        ):
            alice.registered()
            (registration,) = json.loads(sip.dnatctl("sip", "registrations", "-o", "json").stdout)
            assert f"@{apart.external}:{alice.ports.first}" in registration["contact"]
            owners = {one["host"] for one in sip.show()["owners"]}
            assert owners == {sip.address, phone.address}
            if mode == "redirect":
                assert stranger.ask(request("INVITE", alice.identity, "sip:me@203.0.113.2")) == 302
            converse(ext, alice, alice.identity)
        recorder.stop()
        assert _asks(recorder) == {(phone.address, sip.address), (sip.address, phone.address)}


class _down(ExitStack):
    """A node that is down meanwhile."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        node.dnatctl("down")
        self.callback(node.dnatctl, "up")
