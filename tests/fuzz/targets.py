"""Everything that reads octets which somebody else wrote: one function each, which must end well or raise what it says.

A target takes any octets. What it raises is a defect. Seeds are octets that get far.
"""

from __future__ import annotations

import json
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path

from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from dnat import config, key_file
from dnat.capture import sniff
from dnat.capture.calls import Endpoint, analyse, parse_sdp, parse_sip, read_traffic
from dnat.capture.frames import Packet
from dnat.daemon import api
from dnat.daemon.agreement import X25519Agreement
from dnat.daemon.clock import SteadyClock
from dnat.daemon.mappings import Mappings
from dnat.daemon.saved_leases import load_leases
from dnat.errors import DnatError, PlatformError, UsageError
from dnat.leases.pool import Pool
from dnat.leases.table import LeaseTable
from dnat.pap.agent import Agent
from dnat.pap.auth import Direction, Key, Stamp, seal
from dnat.pap.codec import CodecError, decode, encode
from dnat.pap.credentials import Credentials
from dnat.pap.guard import Guard, Mode
from dnat.pap.keyring import KeyRecord, Keyring, KeyState
from dnat.pap.messages import Message, MessageType, Want
from dnat.pap.policy import Policy
from dnat.pap.server import Server
from dnat.system import dhcp
from dnat.system.journal import Journal
from dnat.types import Lease, PortRange, Protocol, Purpose

HERE = Path(__file__).parent
HOST, SERVER, EXTERNAL = IPv4Address("10.66.0.11"), IPv4Address("10.66.0.1"), IPv4Address("198.51.100.1")
HOST_ID = bytes(range(16))
KEY = Key(7, bytes(range(32)))
OTHER_KEY = Key(7, bytes(32))
"""Known by the same number: what is sealed with the first is not authentic."""
NOW = 1_800_000_000.0


@dataclass(frozen=True)
class Target:
    """Something to feed."""

    feed: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]


def codec(octets: bytes) -> None:
    """A message that was understood can be said, and is understood the same."""
    try:
        message = decode(octets)
    except CodecError:
        return
    assert decode(encode(message)) == message


def _vectors() -> list[bytes]:
    found = json.loads((HERE.parent / "unit/vectors/pap.json").read_text())
    return [bytes.fromhex(each) for each in _strings(found) if len(each) >= 40 and _is_hexadecimal(each)]


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in _strings(each)]


def _is_hexadecimal(text: str) -> bool:
    return len(text) % 2 == 0 and all(each in "0123456789abcdef" for each in text)


def _server(mode: Mode, key: Key) -> Server:
    records = [KeyRecord(key, "host", HOST_ID, KeyState.ACTIVE, False, 1.0)]
    guard = Guard(mode, Keyring(lambda: 4, records), bytes(32), X25519Agreement, NOW)
    pool = Pool((EXTERNAL,), (PortRange(20000, 20255),), (PortRange(5060, 5061),))
    return Server(LeaseTable(pool), lambda: 4, Policy(networks=(config.IPv4Network("10.66.0.0/24"),)), NOW - 99, guard)


def server(octets: bytes) -> None:
    """Nobody gets, moves or ends a lease or a key without a key or a cookie, and no answer is large."""
    for mode in Mode:
        one = _server(mode, OTHER_KEY)
        one.receive(octets, (HOST, 5728), NOW)
        one.timeout(NOW)
        for step in one.steps():
            assert not step.changes and not step.keys
            assert sum(len(answer) for answer, _ in step.datagrams) <= 2 * len(octets)


def sealed_server(octets: bytes) -> None:
    """What a host that has a key says: whatever it is, leases stay within the pool and the quota."""
    one = _server(Mode.STRICT, KEY)
    try:
        message = seal(
            octets[:1000].ljust(20, b"\0"), KEY, Direction.FROM_AGENT, HOST, Stamp(int(NOW * 1e3), int(NOW * 1e6))
        )
    except ValueError:
        return
    one.receive(message, (HOST, 5728), NOW + 1)
    for step in one.steps():
        one.committed(step, NOW + 1)
    assert sum(len(record.ports) for record in one.table) <= one.decisions.policy.max_ports_per_host
    assert all(record.host_id == HOST_ID for record in one.table)


def agent(octets: bytes) -> None:
    """Without the server's key nobody ends a lease; without any key nothing else happens than the server said."""
    lease = Lease(9, EXTERNAL, PortRange(20000, 20063), Protocol.ANY, Purpose.EPHEMERAL, 1000.0)
    for key in (KEY, None):
        one = Agent(HOST_ID, lambda: 4, Credentials(HOST, NOW, key, X25519Agreement))
        one.adopt([lease], 0.0)
        one.receive(octets, 1.0)
        one.timeout(2.0)
        one.events()
        one.datagrams()
        assert key is None or one.leases == (lease,)


def _sealed() -> list[bytes]:
    ways = (Direction.FROM_AGENT, Direction.FROM_SERVER)
    stamp = Stamp(int(NOW * 1e3), int(NOW * 1e6))
    want = Message(MessageType.REQUEST, 5, host_id=HOST_ID, want=Want(64, Protocol.ANY, Purpose.EPHEMERAL))
    return _vectors() + [seal(encode(want), KEY, way, HOST, stamp) for way in ways]


def sip(octets: bytes) -> None:
    parse_sip(_packet(octets), Endpoint(HOST, 5060), Endpoint(SERVER, 5060))
    list(parse_sdp(octets.decode(errors="replace")))


def traffic(octets: bytes) -> None:
    """Several packets, each with its length before it."""
    packets, position = [], 0
    while position + 2 <= len(octets):
        length = int.from_bytes(octets[position : position + 2])
        packets.append(_packet(octets[position + 2 : position + 2 + length], float(position)))
        position += 2 + length
    for call in analyse(packets).calls:
        _ = call.caller, call.callee, call.answered_at


def _packet(payload: bytes, at: float = 0.0) -> Packet:
    return Packet(at, HOST, SERVER, 17, 5060, 5060, payload, 1)


def _sip_seeds() -> list[bytes]:
    sdp = (
        "v=0\r\nc=IN IP4 198.51.100.1\r\nm=audio 20000 RTP/AVP 0 8\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\n"
    )
    head = "INVITE sip:b@x SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK1\r\nFrom: <sip:a@x>;tag=1\r\n"
    head += "To: <sip:b@x>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\nContact: <sip:a@198.51.100.1:20000>\r\n"
    invite = f"{head}Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n\r\n{sdp}"
    ok = invite.replace("INVITE sip:b@x SIP/2.0", "SIP/2.0 200 OK")
    return [invite.encode(), ok.encode(), sdp.encode(), head.encode() + b"\r\n"]


def _traffic_seeds() -> list[bytes]:
    rtp = bytes.fromhex("80000001000000a000000007") + bytes(160)
    dialogue = [*_sip_seeds()[:2], rtp, rtp]
    return [b"".join(len(each).to_bytes(2) + each for each in dialogue)]


def pcap(octets: bytes) -> None:
    """A capture file: read for calls, and printed line by line."""
    path = _scratch() / "x.pcap"
    path.write_bytes(octets)
    for use in (read_traffic, lambda each: sniff.read(each, lambda _: None)):
        try:
            use(path)
        except UsageError:
            pass


def _pcap_seeds() -> list[bytes]:
    head = bytes.fromhex("d4c3b2a1020004000000000000000000ffff000065000000")
    packets = [
        bytes(IP(src=str(HOST), dst=str(SERVER)) / UDP(sport=sport, dport=dport) / Raw(load))
        for sport, dport, load in (
            *((5060, 5060, each) for each in _sip_seeds()),
            *((5728, 5727, each) for each in _sealed()[:3]),
        )
    ]
    records = [len(each).to_bytes(4, "little") * 2 + each for each in packets]
    return [head + b"".join(bytes(8) + each for each in records), head]


def api_line(octets: bytes) -> None:
    try:
        name, parameters = api._parse(octets)
    except UsageError:
        return
    assert isinstance(name, str) and isinstance(parameters, dict)


def configuration(octets: bytes) -> None:
    try:
        config.parse(tomllib.loads(octets.decode()), "dnat.toml")
    except (config.ConfigError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        pass
    path = _scratch() / "dnat.toml"
    path.write_bytes(octets)
    try:
        config.load(path)
    except config.ConfigError:
        pass


def key(octets: bytes) -> None:
    path = _scratch() / "key"
    path.write_bytes(octets)
    path.chmod(0o600)
    try:
        found = key_file.load(path)
        assert found is not None and key_file.from_text(key_file.to_text(found)) == found
    except PlatformError:
        pass


def saved(octets: bytes) -> None:
    """Files that a daemon leaves for the one after it: it starts, whatever has become of them."""
    path = _scratch() / "saved.json"
    path.write_bytes(octets)
    found = load_leases(path, 0.0)
    assert found is None or all(lease.expires_at > 0.0 for lease in found.leases)
    list(Mappings(path))
    SteadyClock(path)
    path.write_bytes(octets)
    try:
        _ = Journal(path).entries
    except DnatError:
        pass


def option(octets: bytes) -> None:
    """What a DHCP client noted, in its own words."""
    path = _scratch() / "lease"
    path.write_bytes(octets)
    for text in (dhcp.networkd(path), octets.decode("ascii", errors="replace")):
        try:
            dhcp.parse(text)
        except ValueError:
            pass


@cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="dnat-fuzz-", dir="/dev/shm"))


def _texts(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


TARGETS = {
    "codec": Target(codec, _vectors),
    "server": Target(server, _sealed),
    "sealed-server": Target(sealed_server, _vectors),
    "agent": Target(agent, _sealed),
    "sip": Target(sip, _sip_seeds),
    "traffic": Target(traffic, _traffic_seeds),
    "pcap": Target(pcap, _pcap_seeds),
    "api": Target(api_line, _texts('{"method": "show", "parameters": {"x": [1, null, "y"]}}', '{"method": 1}', "[[]]")),
    "configuration": Target(
        configuration,
        _texts(
            'roles = ["server", "router", "host", "sip"]\n[server]\nexternal_addresses = ["198.51.100.1"]\n'
            'ports = ["10000-59999"]\nauthentication = "tofu"\n[[server.reserved]]\nports = "5060"\nhosts = ["x"]\n'
            '[router]\nlan = "lan"\nwan = "wan"\n[host.timers]\nudp = 300\n[metrics]\nlisten = "127.0.0.1:9437"\n',
            '[sip]\nmode = "proxy"\ndomain = "example.org"\n',
        ),
    ),
    "dhcp": Target(option, _texts("10.66.0.1", "a:42:0:1", "0a420001", '"BCDE"', "X=1\nOPTION_227=0a420001\n")),
    "key": Target(key, lambda: [key_file.to_text(KEY).encode()]),
    "saved": Target(
        saved,
        _texts(
            '{"epoch": {"epoch": 5, "seen_at": 1.5}, "leases": [{"id": 9, "address": "198.51.100.1", "first": 20000,'
            ' "last": 20063, "protocol": 0, "purpose": 1, "expires_at": 99.5}]}',
            '[{"protocol": 17, "local_port": 5060, "port": 20001, "leased": true}]',
            '{"boot": "x", "offset": 1.5}',
            '{"format": 1, "namespace": "x", "entries": [{"kind": "a", "subject": "b", "facts": {}}]}',
        ),
    ),
}


def seeds(name: str, directory: str) -> None:
    """Write the seeds of a target into files."""
    for number, octets in enumerate(TARGETS[name].seeds()):
        Path(directory, f"seed{number}").write_bytes(octets)
