"""What a stranger on the LAN can do to server and hosts: nothing, and each try is counted under its name."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pap_link import BLOCK, EXTERNAL, FOUR_BLOCKS, LAN, SIP, Host, Network
from pap_strategies import messages

from dnat.capture import pap_layer as layer
from dnat.pap.codec import decode, encode
from dnat.pap.guard import Mode
from dnat.pap.messages import AGENT_PORT, LeaseInfo, Message, MessageType, Result
from dnat.pap.policy import Policy
from dnat.types import PortRange, Protocol, Purpose

VICTIM, THIEF = 11, 12


class Scene:
    """A server with keys, a phone that holds port 5060, and a stranger who has recorded everything."""

    def __init__(self, mode: Mode = Mode.TOFU) -> None:
        self.net = Network(policy=Policy((LAN,), lifetime=60), mode=mode)
        self.net.silent(1000)
        self.phone = self.net.host("phone", VICTIM)
        self.phone.agent.want(SIP, self.net.now)
        self.net.silent(1)
        assert self.phone.ports == ["5060"]
        self.leases = dict(self.net.store.leases)

    def recorded(self, sender: str, kind: str) -> list[bytes]:
        return [octets for octets, who in self.net.wire if who == sender and decode(octets).type.name == kind]

    def counted(self, octets: bytes, last_octet: int = VICTIM) -> Counter[str]:
        """Says it to the server; what that counts, once nothing has come of it."""
        assert self.net.server is not None
        before = self.net.server.counters.copy()
        self.net.say(octets, last_octet)
        assert self.net.store.leases == self.leases
        return self.net.server.counters - before

    def doubted(self, octets: bytes) -> Counter[str]:
        """Says it to the phone; what that counts, once nothing has come of it."""
        before = self.phone.agent.counters.copy()
        self.phone.agent.receive(octets, self.net.now)
        assert self.phone.ports == ["5060"]
        assert not self.phone.agent.datagrams()
        return self.phone.agent.counters - before


@pytest.fixture
def scene() -> Scene:
    return Scene()


def forged_release(scene: Scene) -> bytes:
    (lease,) = scene.phone.agent.leases
    info = LeaseInfo(lease.id, lease.address, lease.ports, lease.protocol, lease.purpose, 0)
    return encode(Message(MessageType.RELEASE, 99, host_id=scene.phone.agent.host_id, leases=(info,)))


def sealed_want(scene: Scene) -> bytes:
    """The phone's question that was granted, as it was on the wire."""
    return next(each for each in scene.recorded("phone", "REQUEST") if decode(each).auth is not None)


def test_forged_without_a_key(scene: Scene) -> None:
    assert scene.counted(forged_release(scene)) == {"key-missing": 1}


def test_forged_with_a_key_that_nobody_has(scene: Scene) -> None:
    packet = layer.PAP(sealed_want(scene))
    packet.clear_cache()
    packet.attributes[-1].key_id = 0xBADBADBA
    assert scene.counted(bytes(packet)) == {"unknown-key": 1}


def test_forged_with_another_algorithm(scene: Scene) -> None:
    for algorithm, tag in ((0, b"\0"), (2, bytes(32)), (0xFFFF, bytes(64))):
        packet = layer.PAP(sealed_want(scene))
        auth = packet.attributes[-1]
        packet.attributes[-1] = layer.PAPAuth(
            key_id=auth.key_id, algorithm=algorithm, timestamp=auth.timestamp, counter=auth.counter, tag=tag
        )
        packet.clear_cache()
        packet.length = None
        assert scene.counted(bytes(packet)) == {"unknown-algorithm": 1}


def test_changed_under_way(scene: Scene) -> None:
    """Any bit: the message is refused, and never acted on."""
    genuine = sealed_want(scene)
    seen: Counter[str] = Counter()
    for position in range(len(genuine)):
        forged = bytearray(genuine)
        forged[position] ^= 1 << position % 8
        seen += scene.counted(bytes(forged))
    assert seen.keys() <= {
        "bad-tag",
        "malformed",
        "unknown-key",
        "unknown-algorithm",
        "unsupported-attribute",
        "unsupported-version",
        "unexpected-type",
        "key-missing",
        "no-open-invalidation",
    }
    assert seen["bad-tag"] > 40


def test_replayed(scene: Scene) -> None:
    for genuine in scene.recorded("phone", "REQUEST"):
        if decode(genuine).auth is not None:
            assert scene.counted(genuine) == {"replayed": 1}


def test_replayed_from_another_machine(scene: Scene) -> None:
    """The phone's leases would move there."""
    assert scene.counted(sealed_want(scene), THIEF) == {"bad-tag": 1}


def test_replayed_after_the_server_restarted(scene: Scene) -> None:
    scene.net.start_server()
    assert scene.counted(sealed_want(scene)) == {"stale": 1}


def test_replayed_an_hour_later(scene: Scene) -> None:
    release = scene.phone.agent.leases[0].id
    scene.phone.agent.release(release, scene.net.now)
    scene.net.run(3600)
    scene.leases = {}
    assert scene.counted(sealed_want(scene)) == {"replayed": 1}


def test_held_back_and_delivered_late(scene: Scene) -> None:
    """A datagram that the stranger kept from the server is no good after the window."""
    scene.net.lose("REQUEST")
    scene.phone.agent.want(BLOCK, scene.net.now)
    scene.net.settle()
    kept = scene.net.wire[-1][0]
    scene.net.run(1)
    scene.net.run(100)
    scene.leases = dict(scene.net.store.leases)
    assert scene.counted(kept) == {"stale": 1}


@pytest.mark.parametrize("lag", [1, 100, 255])
def test_reordered_within_the_window_is_served(scene: Scene, lag: int) -> None:
    """Datagrams that overtake each other are all genuine."""
    credentials = scene.phone.agent.credentials
    assert credentials is not None and scene.net.server is not None
    question = encode(Message(MessageType.REQUEST, 5, host_id=scene.phone.agent.host_id, resume=True))
    late = credentials.seal(question, scene.net.now)
    for transaction in range(lag):
        scene.net.run(0.1)
        other = encode(Message(MessageType.REQUEST, 100 + transaction, host_id=scene.phone.agent.host_id, resume=True))
        scene.net.say(credentials.seal(other, scene.net.now), VICTIM)
    before = scene.net.server.counters["resume-success"]
    scene.net.say(late, VICTIM)
    assert scene.net.server.counters["resume-success"] == before + 1


def test_truncated(scene: Scene) -> None:
    genuine = sealed_want(scene)
    seen: Counter[str] = Counter()
    for length in range(len(genuine)):
        seen += scene.counted(genuine[:length])
        shorter = bytearray(genuine[:length])
        shorter[4:6] = length.to_bytes(2, "big")
        if length >= 20:
            seen += scene.counted(bytes(shorter))
    assert seen.keys() == {"malformed", "key-missing"}


def test_oversized(scene: Scene) -> None:
    packet = layer.PAP(sealed_want(scene))
    packet.attributes.insert(1, layer.PAPAttribute(type=0x0123, value=bytes(1200)))
    packet.clear_cache()
    packet.length = None
    assert scene.counted(bytes(packet)) == {"malformed": 1}
    assert scene.counted(bytes(65507)) == {"malformed": 1}


def test_reflected_to_the_server(scene: Scene) -> None:
    for kind, counter in (("RESPONSE", "unexpected-type"),):
        for octets in scene.recorded("server", kind):
            assert scene.counted(octets) == {counter: 1}
    scene.phone.agent.release(scene.phone.agent.leases[0].id, scene.net.now)
    scene.net.run(1)
    scene.leases = {}
    (ack,) = scene.recorded("server", "ACK")
    assert scene.counted(ack) == {"no-open-invalidation": 1}


def test_reflected_to_the_host(scene: Scene) -> None:
    sealed = [each for each in scene.recorded("phone", "REQUEST") if decode(each).auth is not None]
    for octets in sealed:
        assert scene.doubted(octets) == {"bad-tag": 1}


def test_a_response_that_was_turned_into_a_question_is_not_authentic(scene: Scene) -> None:
    for octets in scene.recorded("server", "RESPONSE"):
        turned = bytearray(octets)
        turned[1] = MessageType.REQUEST
        if decode(octets).auth is not None:
            assert scene.counted(bytes(turned)) == {"bad-tag": 1}


def test_a_forged_invalidate(scene: Scene) -> None:
    named = LeaseInfo(0, EXTERNAL, PortRange(1, 65535), Protocol.ANY, Purpose.EXPLICIT, 0)
    forged = encode(Message(MessageType.INVALIDATE, 5, Result.NOT_OWNER, leases=(named,)))
    assert scene.doubted(forged) == {"without-auth": 1}
    broken = bytearray(forged)
    broken[20:22] = b"\x81\x23"
    assert scene.doubted(bytes(broken)) == {"unsupported-attribute": 1}


def test_a_replayed_invalidate(scene: Scene) -> None:
    """The port was taken away once, leased again, and stays."""
    net, phone = scene.net, scene.phone
    assert net.server is not None
    net.server.invalidate([phone.agent.leases[0].id], Result.ADMINISTRATIVE, net.now)
    net.server.offence(phone.address, EXTERNAL, 5061, Protocol.UDP, net.now)
    net.run(1)
    phone.agent.want(SIP, net.now)
    net.run(1)
    assert phone.ports == ["5060"]
    recorded = scene.recorded("server", "INVALIDATE")
    for octets in recorded:
        if decode(octets).auth is not None:
            assert scene.doubted(octets) == {"replayed": 1}
    net.reboot(phone)
    phone.agent.adopt([event.lease for event in phone.events if hasattr(event, "lease")][-1:], net.now)
    phone.agent.datagrams()
    sealed = [each for each in recorded if decode(each).auth is not None]
    assert scene.doubted(sealed[0]) == {"freshness-unknown": 1}
    phone.agent.resume(net.now)
    net.run(1)
    assert scene.doubted(sealed[0]) == {"replayed": 1}


def test_a_host_cannot_speak_for_another(scene: Scene) -> None:
    net = scene.net
    thief = net.host("thief", THIEF)
    thief.agent.want(BLOCK, net.now)
    net.silent(1)
    scene.leases = dict(net.store.leases)
    assert thief.agent.credentials is not None and thief.key is not None
    in_its_name = thief.agent.credentials.seal(forged_release(scene), net.now)
    assert scene.counted(in_its_name, THIEF) == {"foreign-key": 1}
    own_name = decode(forged_release(scene))
    with_own = encode(Message(MessageType.RELEASE, 98, host_id=thief.agent.host_id, leases=own_name.leases))
    assert scene.counted(thief.agent.credentials.seal(with_own, net.now), THIEF) == {"release-success": 1}
    renew = encode(Message(MessageType.REQUEST, 97, host_id=thief.agent.host_id, leases=own_name.leases))
    assert scene.counted(thief.agent.credentials.seal(renew, net.now), THIEF) == {"renew-success": 1}
    assert net.store.leases[own_name.leases[0].id].host_id == scene.phone.agent.host_id


def test_a_forged_ack_does_not_end_the_repeats(scene: Scene) -> None:
    net = scene.net
    assert net.server is not None
    net.lose("INVALIDATE", 1000)
    net.server.invalidate([scene.phone.agent.leases[0].id], Result.ADMINISTRATIVE, net.now)
    net.settle()
    scene.leases = {}
    transaction = decode(net.wire[-1][0]).transaction
    ack = encode(Message(MessageType.ACK, transaction, host_id=scene.phone.agent.host_id))
    assert scene.counted(ack) == {"ack-without-key": 1}
    deadline = net.server.next_deadline
    assert deadline is not None and deadline < net.now + 1


def test_a_cookie_is_good_for_its_address_only() -> None:
    net = Network(mode=Mode.OPEN)
    phone = net.host("phone", VICTIM)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert net.server is not None
    asked = net.wire[2][0]
    assert decode(asked).cookie is not None
    net.say(asked, THIEF)
    net.say(asked, VICTIM, AGENT_PORT + 1)
    assert net.server.counters["cookie-wrong"] == 2
    net.run(3 * 3600)
    net.say(asked, VICTIM)
    assert net.server.counters["cookie-wrong"] == 3 or phone.ports == ["5060"]


@pytest.mark.parametrize("mode", Mode)
@given(st.lists(st.binary(max_size=300) | messages.map(encode), min_size=1, max_size=8))
@settings(max_examples=60)
def test_no_answer_is_larger_than_twice_the_question(mode: Mode, datagrams: list[bytes]) -> None:
    """As long as the sender has shown neither key nor cookie."""
    net = Network(mode=mode)
    holder = net.host("holder", VICTIM)
    for _ in range(3):
        holder.agent.want(BLOCK, net.now)
        net.silent(1)
    assert net.server is not None
    own = Message(MessageType.REQUEST, 7, host_id=holder.agent.host_id, resume=True)
    for datagram in (*datagrams, encode(own)):
        net.server.receive(datagram, (LAN[VICTIM], AGENT_PORT), net.now)
        for step in net.server.steps():
            net.server.committed(step, net.now)
            assert sum(len(octets) for octets, _ in step.datagrams) <= 2 * len(datagram)
            assert not step.changes and not step.keys


def test_a_packet_from_nowhere_provokes_one_warning_only() -> None:
    """An offence may be forged, too: a host that holds nothing is told once, not for two minutes."""
    net = Network(mode=Mode.OPEN)
    net.host("nobody", VICTIM)
    net.lose("INVALIDATE", 1000)
    assert net.server is not None
    net.server.offence(LAN[VICTIM], EXTERNAL, 5060, Protocol.UDP, net.now)
    net.run(200)
    assert len(net.transcript()) == 1


def flood_of_wants(net: Network, seconds: float, per_second: int, source: int | None) -> None:
    """Questions of invented hosts, without key or cookie, while everybody else goes on."""
    dice = random.Random(1)
    for _ in range(int(seconds)):
        for _ in range(per_second):
            want = encode(Message(MessageType.REQUEST, dice.getrandbits(64), host_id=dice.randbytes(16), want=BLOCK))
            assert net.server is not None
            net.server.receive(want, (LAN[source or dice.randrange(2, 250)], AGENT_PORT), net.now)
        net.server.steps()
        net.run(1)


@pytest.mark.parametrize("mode", Mode)
def test_a_forged_flood_leaves_no_trace_and_renewals_go_on(mode: Mode) -> None:
    net = Network(policy=Policy((LAN,), lifetime=60), mode=Mode.TOFU)
    phone = net.host("phone", VICTIM)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    net.mode = mode
    net.start_server()
    flood_of_wants(net, seconds=70, per_second=300, source=None)
    assert phone.ports == ["5060"]
    assert [record.ports for record in net.store.leases.values()] == [PortRange(5060, 5060)]
    assert len(net.store.keys) == 1


def test_a_flood_with_the_address_of_a_host_does_not_shut_it_out() -> None:
    net = Network(policy=Policy((LAN,), lifetime=60), mode=Mode.OPEN)
    phone = net.host("phone", VICTIM)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    flood_of_wants(net, seconds=70, per_second=300, source=VICTIM)
    assert phone.ports == ["5060"]
    assert len(net.store.leases) == 1


def greedy(net: Network, host: Host) -> None:
    """A true host asks for whatever it can get, as often as it can."""
    assert net.server is not None and host.agent.credentials is not None
    dice = random.Random(2)
    for _ in range(300):
        want = Message(MessageType.REQUEST, dice.getrandbits(64), host_id=host.agent.host_id, want=BLOCK)
        net.say(host.agent.credentials.seal(encode(want), net.now), THIEF)


@pytest.mark.parametrize("mode", [Mode.OPEN, Mode.TOFU])
def test_a_true_flood_takes_its_quota_and_no_more(mode: Mode) -> None:
    net = Network(FOUR_BLOCKS, Policy((LAN,), lifetime=60, max_ports_per_host=128), mode)
    phone, thief = net.host("phone", VICTIM), net.host("thief", THIEF)
    phone.agent.want(SIP, net.now)
    thief.agent.resume(net.now)
    net.silent(1)
    for _ in range(65):
        greedy(net, thief)
        net.silent(1)
    assert net.server is not None
    assert phone.ports == ["5060"]
    of_thief = [record for record in net.store.leases.values() if record.host_id == thief.agent.host_id]
    assert sum(len(record.ports) for record in of_thief) <= 128
    assert net.server.counters["host-above-rate"] > 0.8 * 65 * 300
    phone.agent.want(BLOCK, net.now)
    net.silent(1)
    assert len(phone.ports) == 2


def test_invented_identities_share_the_quota_of_their_address() -> None:
    net = Network(FOUR_BLOCKS, Policy((LAN,), max_ports_per_host=64), Mode.OPEN)
    thief = net.host("thief", THIEF)
    thief.agent.resume(net.now)
    net.silent(1)
    assert thief.agent.credentials is not None
    for number in range(50):
        want = Message(MessageType.REQUEST, number, host_id=number.to_bytes(16, "big"), want=BLOCK)
        net.say(thief.agent.credentials.seal(encode(want), net.now), THIEF)
    assert sum(len(record.ports) for record in net.store.leases.values()) == 64
    assert net.server is not None
    assert net.server.counters["want-quota-exceeded"] == 49


@given(st.lists(st.binary(max_size=100) | messages.map(encode), max_size=10), st.sampled_from(Mode))
@settings(max_examples=100)
def test_any_datagram_is_survived_by_both(datagrams: list[bytes], mode: Mode) -> None:
    net = Network(mode=mode)
    phone = net.host("phone", VICTIM)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    held = phone.ports
    for datagram in datagrams:
        net.say(datagram, VICTIM)
        phone.agent.receive(datagram, net.now)
    net.silent(1)
    if mode is Mode.TOFU:
        assert phone.ports == held
    net.silent(4000)
