"""Keys on real machines: who is served in which mode, rotation under way, and strangers on and off the LAN."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from inside import ip, run
from nodes import SECONDS, Lab, Node, eventually

from dnat.capture import pap_layer as pap
from dnat.daemon.pap_socket import PapSocket
from dnat.lab import builder
from dnat.lab.topology import Topology
from dnat.system import netns

UDP = socket.SOCK_DGRAM
PAP = 5727


def _lab(mode: str) -> Iterator[Lab]:
    topology = Topology(prefix=f"dt{os.getpid()}{mode[:2]}", authentication=mode)
    try:
        builder.build(topology)
        Node(topology, "router").dnatctl("up")
        yield Lab(topology)
    finally:
        builder.destroy(topology.prefix)


@pytest.fixture(scope="module")
def tofu(_root: None) -> Iterator[Lab]:
    """A lab whose server wants keys; phones are not up yet."""
    yield from _lab("tofu")


@pytest.fixture(scope="module")
def strict(_root: None) -> Iterator[Lab]:
    """A lab whose server serves only keys that an operator made."""
    yield from _lab("strict")


def key_file(node: Node) -> Path:
    return Path(f"/var/lib/dnat/{node.namespace}/key")


def keys(node: Node) -> dict[str, dict[str, str]]:
    """The keys that a server has, by identifier."""
    listed = json.loads(node.dnatctl("key", "list", "-o", "json").stdout)["keys"]
    return {each["id"]: each for each in listed}


def own_key(node: Node) -> str | None:
    own: str | None = json.loads(node.dnatctl("key", "list", "-o", "json").stdout)["own"]
    return own


def counted(lab: Lab, name: str) -> int:
    return int(lab["router"].show()["pap"]["server"].get(name, 0))


def reaches_the_outside(node: Node, lab: Lab) -> bool:
    return node.run("curl", "-sS", "-m", "5", f"http://{lab.ext}/").stdout.startswith(lab.external)


def test_tofu_host_agrees_on_a_key_by_itself(tofu: Lab) -> None:
    phone = tofu["phone1"]
    phone.dnatctl("up")
    assert reaches_the_outside(phone, tofu)
    own = own_key(phone)
    assert own is not None
    record = keys(tofu["router"])[own]
    status = json.loads(phone.dnatctl("status", "-o", "json").stdout)
    assert (record["state"], record["origin"], record["host_id"]) == ("active", "agreed", status["host_id"])


def test_secrets_are_roots_alone(tofu: Lab) -> None:
    phone, router = tofu["phone1"], tofu["router"]
    store = Path(f"/var/lib/dnat/{router.namespace}/keys.sqlite")
    for path in (key_file(phone), store):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = key_file(phone).read_text().strip().rpartition(":")[2]
    for node in (phone, router):
        said = node.dnatctl("key", "list").stdout + node.dnatctl("key", "list", "-o", "json").stdout
        assert secret not in said + Path(f"/run/dnat/{node.namespace}/daemon.log").read_text()


def test_the_key_outlives_daemons_and_crashes(tofu: Lab) -> None:
    phone, router = tofu["phone1"], tofu["router"]
    own, ports = own_key(phone), phone.ports("ephemeral")
    for node in (router, phone):
        os.kill(node.pid(), 9)
        node.dnatctl("up")
    assert own_key(phone) == own
    assert phone.ports("ephemeral") == ports
    assert len(keys(router)) == 1
    phone.dnatctl("down")
    phone.dnatctl("up")
    assert phone.ports("ephemeral") == ports


def test_rotation_without_an_outage(tofu: Lab) -> None:
    """A connection that stays open sees nothing; leases are asked for and given back all the while."""
    phone, router = tofu["phone1"], tofu["router"]
    old = own_key(phone)
    assert old is not None
    with phone.socket(UDP) as talk:
        router.dnatctl("key", "rotate", keys(router)[old]["name"])
        for _ in range(5):
            port = phone.request("--ports", "1")["first"]
            talk.sendto(b"still there?", (tofu.ext, 7))
            assert talk.recv(100) == b"still there?"
            phone.dnatctl("release", str(port))
    new = eventually(lambda: (own := own_key(phone)) != old and own, "the host has a new key")
    phone.dnatctl("release", str(phone.request("--ports", "1")["first"]))
    assert {each: keys(router)[each]["state"] for each in (old, new)} == {old: "retiring", new: "active"}
    assert key_file(phone).read_text().startswith(f"dnat-key-1:{new}:")


def test_a_host_changes_its_key_itself(tofu: Lab) -> None:
    phone = tofu["phone1"]
    old = own_key(phone)
    phone.dnatctl("key", "rotate")
    new = eventually(lambda: (own := own_key(phone)) != old and own, "the host has a new key")
    phone.dnatctl("release", str(phone.request("--ports", "1")["first"]))
    assert keys(tofu["router"])[new]["state"] == "active"


FORGE = """
import sys
from scapy.all import IP, UDP, Ether, getmacbyip, sendp
target, source, port, hexadecimal = sys.argv[1:5]
packet = Ether(dst=getmacbyip(sys.argv[5])) / IP(src=source, dst=target) / UDP(sport=int(port), dport=5727)
sendp(packet / bytes.fromhex(hexadecimal), iface="eth0", verbose=0, count=3)
"""


def forge(node: Node, lab: Lab, message: bytes, source: str, gateway: str = "10.66.0.1") -> None:
    """Have a machine send the server a message with any source address."""
    node.run(sys.executable, "-c", FORGE, lab["router"].address, source, "5728", message.hex(), gateway)


def release_of(phone: Node) -> bytes:
    """What would take the phone's ports away, if the server believed it."""
    host_id = json.loads(phone.dnatctl("status", "-o", "json").stdout)["host_id"]
    leases = [
        pap.PAPLease(id=int(each["id"], 16), address=each["address"], first=each["first"], last=each["last"])
        for each in phone.show()["leases"]
    ]
    attributes = [pap.PAPHostId(host_id=bytes.fromhex(host_id)), *leases]
    return bytes(pap.PAP(type="RELEASE", transaction=99, attributes=attributes))


def test_a_stranger_takes_nothing_away(tofu: Lab) -> None:
    phone, thief = tofu["phone1"], tofu["phone2"]
    before, missing = phone.show()["leases"], counted(tofu, "key-missing")
    forge(thief, tofu, release_of(phone), phone.address)
    forge(thief, tofu, release_of(phone), thief.address)
    eventually(lambda: counted(tofu, "key-missing") == missing + 6, "the server has refused them")
    assert {each["id"] for each in tofu["router"].show()["leases"]} >= {each["id"] for each in before}
    assert reaches_the_outside(phone, tofu)


def test_a_source_off_the_lan_is_ignored(tofu: Lab) -> None:
    before = counted(tofu, "off-lan")
    forge(tofu["phone2"], tofu, release_of(tofu["phone1"]), "192.0.2.77")
    eventually(lambda: counted(tofu, "off-lan") == before + 3, "a foreign source address was noticed")


def test_a_datagram_for_the_lan_that_comes_in_elsewhere_is_ignored(namespace: Callable[[str], str]) -> None:
    """Linux takes it, with a source of the LAN and all; the socket does not."""
    router, inside, outside = namespace("router"), namespace("inside"), namespace("outside")
    for peer, end, address in ((inside, "lan", "10.66.0.1"), (outside, "wan", "203.0.113.1")):
        ip(router, f"link add {end} type veth peer name eth0 netns {peer}")
        ip(router, f"addr add {address}/24 dev {end}; link set {end} up")
        ip(peer, "link set eth0 up; addr add 10.66.0.11/24 dev eth0")
    run(router, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.wan.rp_filter=0")
    mac = json.loads(run(router, "ip", "-j", "link", "show", "wan"))[0]["address"]
    ip(outside, f"neigh add 10.66.0.1 lladdr {mac} dev eth0")

    async def listen() -> tuple[list[bytes], int]:
        heard: list[bytes] = []
        with netns.enter(router):
            opened = await PapSocket.open(IPv4Address("10.66.0.1"), PAP, lambda data, _: heard.append(data), "lan")
        for peer, data in ((outside, b"from outside"), (inside, b"from inside")):
            with netns.enter(peer), socket.socket(socket.AF_INET, UDP) as sender:
                sender.sendto(data, ("10.66.0.1", PAP))
        with netns.enter(router):
            deadline = asyncio.get_running_loop().time() + SECONDS
            while not (heard and opened.counters) and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.01)
        opened.close()
        return heard, opened.counters["wrong-interface"]

    assert asyncio.run(listen()) == ([b"from inside"], 1)


FLOOD = """
import os, socket, sys, time
flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
flood.bind(("", 5728))
host_id, want = bytes.fromhex("80010010"), bytes.fromhex("8002001000400001") + bytes(12)
end = time.monotonic() + 8
while time.monotonic() < end:
    head = bytes.fromhex("01000000003c0000") + os.urandom(8) + bytes(4)
    flood.sendto(head + host_id + os.urandom(16) + want, (sys.argv[1], 5727))
"""


def test_a_flood_does_not_keep_a_host_from_its_leases(tofu: Lab) -> None:
    phone, thief, router = tofu["phone1"], tofu["phone2"], tofu["router"]
    leased, before = len(router.show()["leases"]), counted(tofu, "unverified-above-rate")
    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(thief.run, sys.executable, "-c", FLOOD, router.address)
        eventually(lambda: counted(tofu, "unverified-above-rate") > before, "the flood is on")
        port = phone.request("--ports", "1")["first"]
        assert not flooding.done(), "the flood was still going on"
        flooding.result()
    phone.dnatctl("release", str(port))
    assert len(router.show()["leases"]) == leased
    assert counted(tofu, "unverified-above-rate") > before + 10_000


def test_a_revoked_host_is_out_until_it_is_forgotten(tofu: Lab) -> None:
    phone, router = tofu["phone1"], tofu["router"]
    own = own_key(phone)
    assert own is not None
    name = keys(router)[own]["name"]
    router.dnatctl("key", "revoke", name)
    eventually(lambda: not phone.show()["leases"], "the host has given its ports up")
    refused = phone.dnatctl("request", "--ports", "1", code=3).stderr
    assert "dnatctl key forget" in refused
    phone.dnatctl("down")
    phone.dnatctl("key", "forget")
    assert not key_file(phone).exists()
    assert "its operator has to allow this host" in phone.dnatctl("up", code=3).stderr
    router.dnatctl("key", "forget", name)
    phone.dnatctl("up")
    assert reaches_the_outside(phone, tofu)


def test_strict_wants_the_key_that_an_operator_made(strict: Lab) -> None:
    phone, router = strict["phone1"], strict["router"]
    said = phone.dnatctl("up", code=3).stderr
    assert "needs a key" in said or "has to allow" in said
    made = router.dnatctl("key", "add", "phone1").stdout
    phone.dnatctl("key", "install", input=made)
    phone.dnatctl("up")
    assert reaches_the_outside(phone, strict)
    (record,) = keys(router).values()
    assert (record["name"], record["state"], record["origin"]) == ("phone1", "active", "operator")


def test_strict_keys_are_rotated_too(strict: Lab) -> None:
    phone, router = strict["phone1"], strict["router"]
    old = own_key(phone)
    router.dnatctl("key", "rotate", "--all")
    phone.dnatctl("release", str(phone.request("--ports", "1")["first"]))
    new = eventually(lambda: (own := own_key(phone)) != old and own, "the host has a new key")
    assert keys(router)[new]["name"] == "phone1"


def test_a_key_is_good_for_one_host(strict: Lab) -> None:
    phone, thief = strict["phone1"], strict["phone2"]
    thief.dnatctl("key", "install", input=key_file(phone).read_text())
    assert "belongs to another host" in thief.dnatctl("up", code=3).stderr
    assert counted(strict, "foreign-key") >= 1


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (("key", "add", "phone1"), 2, "already"),
        (("key", "add", "x", "--host-id", "00"), 2, "32 hexadecimal digits"),
        (("key", "revoke", "nobody"), 2, 'no key called "nobody"'),
        (("key", "rotate"), 2, "name the keys"),
    ],
)
def test_mistakes_are_explained(strict: Lab, argv: tuple[str, ...], code: int, said: str) -> None:
    assert said in strict["router"].dnatctl(*argv, code=code).stderr


def test_a_key_that_others_can_read_is_refused(strict: Lab) -> None:
    phone = strict["phone1"]
    phone.dnatctl("down")
    key_file(phone).chmod(0o644)
    assert "chmod 600" in phone.dnatctl("up", code=4).stderr
    key_file(phone).chmod(0o600)
    phone.dnatctl("up")
    assert "is no key" in phone.dnatctl("key", "install", input="nonsense\n", code=2).stderr
