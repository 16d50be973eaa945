"""What the claims say step by step, watched on the wire (docs/claims.md; calls by server are in test_sip_server.py)."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from nodes import Lab, eventually
from scapy.layers.inet import IP, UDP
from scapy.utils import PcapReader
from sip_phones import SipPhone, converse

from dnat.capture.pap_layer import PAP
from dnat.capture.recorder import Recorder
from dnat.pap.messages import AGENT_PORT, SERVER_PORT
from dnat.system import netns

ECHO = 7
LOCAL = 4567
ROOT = Path(__file__).parents[2]


def packets(path: Path, wanted: Callable[[IP], bool]) -> list[IP]:
    """The UDP packets of a capture that are wanted."""
    with PcapReader(str(path)) as found:
        return [packet[IP] for packet in found if IP in packet and UDP in packet and wanted(packet[IP])]


def test_claims_13_16_17_20_21_a_local_port_becomes_unique_below_and_local_again(
    routed_lab: Lab, tmp_path: Path
) -> None:
    """Claims 5, 7, 13, 16, 17, 20, 21, 23, 25, 38: a local port above is a unique one below, and back.

    The third network device is the router, which is the first as well (20, 21), and forwards without translation.
    """
    passes_unique_below_and_local_again(routed_lab, tmp_path)


def passes_unique_below_and_local_again(lab: Lab, tmp_path: Path) -> None:
    """A datagram from a local port of the phone, and its answer: seen above, on the LAN and outside."""
    phone, router = lab["phone1"], lab["router"]
    with ExitStack() as stack:
        lan = stack.enter_context(Recorder(phone.namespace, "eth0", tmp_path / "lan.pcap"))
        wan = stack.enter_context(Recorder(router.namespace, "wan", tmp_path / "wan.pcap"))
        above = stack.enter_context(phone.socket(socket.SOCK_DGRAM, LOCAL))
        above.connect((lab.ext, ECHO))
        assert above.getsockname() == (lab.external, LOCAL)
        above.send(b"request of the upper layer")
        assert above.recv(100) == b"request of the upper layer"
    unique = phone.ports("translated")
    requests, responses = [], []
    for recorder in (lan, wan):
        both = packets(recorder.path, lambda p: ECHO in (p[UDP].sport, p[UDP].dport))
        requests += [(p.src, p[UDP].sport, p.dst, p[UDP].dport) for p in both if p[UDP].dport == ECHO]
        responses += [(p.src, p[UDP].sport, p.dst, p[UDP].dport) for p in both if p[UDP].sport == ECHO]
    assert len(requests) == len(responses) == 2
    assert requests[0] == requests[1], "the router forwards, and translates nothing"
    assert requests[0][0] == lab.external and requests[0][1] in unique
    assert responses[0] == responses[1] == (*requests[0][2:], *requests[0][:2])


def test_claims_1_3_19_36_ports_are_requested_received_and_invalidated_by_pap(sip_lab: Lab, tmp_path: Path) -> None:
    """Claims 1, 3, 4, 7, 19, 22, 35, 36, 37: request, response, invalidate on the wire."""
    phone, router = sip_lab["phone1"], sip_lab["router"]
    with Recorder(phone.namespace, "eth0", tmp_path / "pap.pcap") as recorder:
        block = phone.request("--ports", "4", "--parity", "even", "--exact")
        _speak_from_a_port_of_others(phone.namespace, sip_lab.external, sip_lab.ext, port=block["first"] + 4096)
        eventually(lambda: _kinds(recorder.path, flush=time.sleep) >= {0, 1, 2, 8}, "all PAP messages are seen", 10)
    seen = packets(recorder.path, lambda p: {p[UDP].sport, p[UDP].dport} == {AGENT_PORT, SERVER_PORT})
    assert {str(p.src) for p in seen} == {phone.address, router.address}
    first = next(p for p in seen if bytes(p[UDP].payload)[1] == 0)
    response = next(p for p in seen if bytes(p[UDP].payload)[1] == 1)
    assert (first.src, response.src) == (phone.address, router.address)
    lease = socket.inet_aton(sip_lab.external) + block["first"].to_bytes(2, "big") + block["last"].to_bytes(2, "big")
    assert lease in bytes(response[UDP].payload), "the combination network address is in the response"
    phone.dnatctl("release", block["id"])


def _kinds(path: Path, flush: Callable[[float], None]) -> set[int]:
    flush(0.2)
    pap = packets(path, lambda p: {p[UDP].sport, p[UDP].dport} == {AGENT_PORT, SERVER_PORT})
    return {PAP(bytes(p[UDP].payload)).type for p in pap}


def _speak_from_a_port_of_others(namespace: str, source: str, destination: str, port: int) -> None:
    """Past the host's own data plane, as a host without it would."""
    with netns.enter(namespace):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        table = subprocess.run(["ip", "neigh", "show", "10.66.0.1"], capture_output=True, text=True, check=True).stdout
        raw.bind(("eth0", 0x0800))
        mac = raw.getsockname()[4]
    gateway = bytes.fromhex(table.partition("lladdr ")[2].split()[0].replace(":", ""))
    packet = IP(src=source, dst=destination, ttl=64) / UDP(sport=port, dport=9) / b"x"
    with raw:
        raw.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS
        raw.send(gateway + mac + b"\x08\x00" + bytes(packet))


def test_claims_2_18_the_instructions_of_an_installed_package(sip_lab: Lab, tmp_path: Path) -> None:
    """Claims 2, 18: what a wheel put on the disk makes a host of a machine; the checkout takes no part."""
    target = tmp_path / "installed"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
    ]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", str(target), str(ROOT)], check=True)
    phone = sip_lab["phone2"]
    phone.dnatctl("down")
    command = [sys.executable, "-c", "import dnat.cli; print(dnat.cli.__file__); dnat.cli.main()"]
    environment = {"PYTHONPATH": str(target), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(tmp_path)}
    try:
        said = phone.run(*command, "up", env=environment, cwd=tmp_path).stdout
        assert said.startswith(str(target)), said
        assert str(target) in Path(f"/proc/{phone.pid()}/environ").read_text()
        with (
            SipPhone(phone, tmp_path / "bob", 660).provision("bob") as bob,
            SipPhone(sip_lab["ext"], tmp_path / "ext", 880).outside() as ext,
        ):
            converse(bob, ext, ext.identity)
    finally:
        phone.run(*command, "down", env=environment, cwd=tmp_path)
        phone.dnatctl("up")
