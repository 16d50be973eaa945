"""Hosts with and without keys, in every mode; each test reads as a transcript."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from pap_link import LAN, SIP, Host, Network

from dnat.errors import UsageError
from dnat.pap.auth import Key
from dnat.pap.codec import decode, encode
from dnat.pap.events import Granted, Refused
from dnat.pap.guard import Mode
from dnat.pap.keyring import OVERLAP, KeyState
from dnat.pap.messages import AGENT_PORT, Message, MessageType, Result
from dnat.pap.policy import Policy


def secure(mode: Mode) -> Network:
    return Network(policy=Policy((LAN,), lifetime=60), mode=mode)


@pytest.fixture
def net() -> Network:
    return secure(Mode.TOFU)


def give_key(net: Network, host: Host, name: str = "phone", host_id: bytes | None = None) -> Key:
    """What an operator does: makes a key on the server and carries it to the host."""
    record, changes = net.guard.keyring.make(name, host_id, net.now)
    net.store.write_keys(changes)
    host.key = record.key
    net.reboot(host)
    return record.key


def states(net: Network) -> list[str]:
    return [record.state.value for record in net.store.keys.values()]


def test_open_serves_whoever_shows_that_he_is_there() -> None:
    net = secure(Mode.OPEN)
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.run(1)
    phone.agent.resume(net.now)
    net.run(1)
    net.expect("""
        0.00 phone > server: REQUEST want 5060 udp explicit
        0.01 server > phone: RESPONSE cookie-required
        0.02 phone > server: REQUEST want 5060 udp explicit
        0.03 server > phone: RESPONSE success 5060/udp 60s
        0.04 phone: granted 5060
        1.00 phone > server: REQUEST resume
        1.01 server > phone: RESPONSE success 5060/udp 60s
        1.02 phone: resumed 5060
    """)


def test_tofu_agrees_on_a_key_first(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.run(1)
    key = phone.key
    assert key is not None
    net.expect(f"""
        0.00 phone > server: REQUEST want 5060 udp explicit
        0.01 server > phone: RESPONSE key-required
        0.02 phone > server: REQUEST key-share
        0.03 server > phone: RESPONSE success key-share
        0.04 phone: agreed on key {key.id & 0xFF}
        0.04 phone > server: REQUEST want 5060 udp explicit
        0.05 server > phone: RESPONSE success 5060/udp 60s
        0.06 phone: granted 5060
    """)
    (record,) = net.store.keys.values()
    assert (record.key, record.host_id, record.state) == (key, phone.agent.host_id, KeyState.ACTIVE)


def test_the_key_survives_restarts_of_both(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(5)
    net.start_server()
    net.reboot(phone)
    phone.agent.resume(net.now)
    net.run(1)
    assert phone.ports == ["5060"]
    assert len(net.store.keys) == 1


def test_a_lost_answer_to_the_first_agreement_is_repeated(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.run(0.025)
    net.lose("RESPONSE")
    net.run(5)
    assert phone.ports == ["5060"]
    assert len(net.store.keys) == 1


def test_an_agreement_that_nobody_heard_of_can_be_made_again(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.run(0.025)
    net.lose("RESPONSE", 100)
    net.run(1)
    net.reboot(phone)
    net._lost.clear()
    phone.agent.want(SIP, net.now)
    net.run(2)
    assert phone.ports == ["5060"]
    assert states(net) == ["active"]


def test_strict_refuses_who_brings_no_key() -> None:
    net = secure(Mode.STRICT)
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.run(1)
    net.expect("""
        0.00 phone > server: REQUEST want 5060 udp explicit
        0.01 server > phone: RESPONSE key-required
        0.02 phone > server: REQUEST key-share
        0.03 server > phone: RESPONSE not-authorized
        0.04 phone > server: REQUEST want 5060 udp explicit
        0.05 server > phone: RESPONSE key-required
        0.06 phone: refused key-required
    """)
    assert not net.store.keys


@pytest.mark.parametrize("mode", Mode)
def test_a_key_that_was_carried_there_is_bound_to_its_first_host(mode: Mode) -> None:
    net = secure(mode)
    phone, thief = net.host("phone", 11), net.host("thief", 12)
    key = give_key(net, phone)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert phone.ports == ["5060"]
    thief.key = key
    net.reboot(thief)
    thief.agent.want(SIP, net.now)
    net.run(1)
    net.expect("""
        1.00 thief > server: REQUEST want 5060 udp explicit
        1.01 server > thief: RESPONSE not-authorized
        1.02 thief: refused not-authorized
    """)
    assert net.server is not None
    assert net.server.counters["foreign-key"] == 1


@pytest.mark.parametrize("mode", Mode)
def test_a_host_that_has_a_key_is_served_only_with_it(mode: Mode) -> None:
    net = secure(mode)
    phone = net.host("phone", 11)
    give_key(net, phone)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    phone.key = None
    net.reboot(phone)
    phone.agent.resume(net.now)
    net.run(1)
    refused = phone.events[-1]
    assert isinstance(refused, Refused)
    assert refused.result is Result.KEY_REQUIRED
    assert len(net.store.leases) == 1


def test_a_key_that_the_server_does_not_know_is_refused_but_not_believed(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.key = Key(77, bytes(32))
    net.reboot(phone)
    phone.agent.want(SIP, net.now)
    net.run(20)
    assert phone.agent.disbelieved is Result.NOT_AUTHORIZED
    assert set(phone.agent.counters) == {"without-auth"}
    assert net.server is not None
    assert net.server.counters == {"unknown-key": 6}


def test_hosts_of_an_open_server_agree_on_keys_when_it_becomes_tofu() -> None:
    net = secure(Mode.OPEN)
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(5)
    net.mode = Mode.TOFU
    net.start_server()
    net.run(60)
    assert phone.ports == ["5060"]
    assert states(net) == ["active"]
    assert not any(isinstance(event, Refused) for event in phone.events)


@pytest.mark.parametrize("skew", [-1e6, -90.0, 90.0, 1e9])
def test_a_wrong_clock_is_corrected_by_the_server(net: Network, skew: float) -> None:
    net.silent(2e6)
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    net.reboot(phone, skew)
    phone.agent.resume(net.now)
    net.run(0.1)
    assert [line.split(" ", 1)[1] for line in net.transcript()] == [
        "phone > server: REQUEST resume",
        "server > phone: RESPONSE stale",
        "phone > server: REQUEST resume",
        "server > phone: RESPONSE success 5060/udp 60s",
        "phone: resumed 5060",
    ]
    net.reboot(phone)
    phone.agent.resume(net.now)
    net.run(1)
    assert phone.ports == ["5060"]


def test_the_clock_of_the_server_is_set_back(net: Network) -> None:
    net.silent(10000)
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert phone.agent.credentials is not None
    phone.agent.credentials._wall_offset += 5000  # as seen from a server whose clock lost 5,000 s
    window = net.guard._windows[phone.key.id if phone.key else 0]
    window.highest += int(5000e6)
    net.run(100)
    assert phone.ports == ["5060"]


def test_rotation_loses_nothing(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    old = phone.key
    assert old is not None
    net.store.write_keys(net.guard.keyring.rotate([old.id]))
    net.run(45)
    new = phone.key
    assert new is not None and new.id != old.id
    net.expect(f"""
        30.00 phone > server: REQUEST 5060/udp
        30.01 server > phone: RESPONSE success new-key 5060/udp 60s
        30.02 phone: renewed 5060 until 90.00
        30.02 phone > server: REQUEST key-share
        30.03 server > phone: RESPONSE success key-share
        30.04 phone: agreed on key {new.id & 0xFF}
    """)
    assert sorted(states(net)) == ["active", "new"]
    net.run(20)
    assert sorted(states(net)) == ["active", "retiring"]
    assert not any(record.replace for record in net.store.keys.values())
    net.run(OVERLAP)
    assert states(net) == ["active"]
    assert phone.ports == ["5060"]
    assert not any(isinstance(event, Refused) for event in phone.events)


def test_both_keys_are_good_during_rotation(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    old = phone.key
    assert phone.agent.change_key(net.now)
    net.run(1)
    new = phone.key
    for key in (new, old, new, old):
        phone.key = key
        net.reboot(phone)
        phone.agent.resume(net.now)
        net.run(1)
        assert phone.ports == ["5060"]


def test_a_host_changes_its_key_by_itself_even_where_strict() -> None:
    net = secure(Mode.STRICT)
    phone = net.host("phone", 11)
    old = give_key(net, phone)
    phone.agent.want(SIP, net.now)
    net.run(1)
    assert phone.agent.change_key(net.now)
    assert not phone.agent.change_key(net.now)
    net.run(1)
    phone.agent.resume(net.now)
    net.run(1)
    assert phone.key is not None and phone.key != old
    assert {record.name: record.state.value for record in net.store.keys.values()} == {"phone": "active"}


def test_invalidates_and_their_acks_are_sealed(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert net.server is not None
    net.server.invalidate([phone.agent.leases[0].id], Result.ADMINISTRATIVE, net.now)
    net.run(10)
    net.expect("""
        1.00 server > phone: INVALIDATE administrative 5060/udp
        1.01 phone: lost 5060 administrative
        1.01 phone > server: ACK success
    """)
    assert net.server.next_deadline is not None
    assert net.server.next_deadline > 100


@pytest.mark.parametrize("older", [True, False])
def test_an_invalidate_of_another_server_is_obeyed(net: Network, older: bool) -> None:
    """Two servers share a store, and each counts its datagrams from its own start on."""
    net.silent(1000)
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    first = net.server
    net.silent(20)
    second = net.server = net._new_server()
    phone.agent.resume(net.now)
    net.silent(1)
    assert phone.ports == ["5060"]
    net.server = first if older else second
    assert net.server is not None
    net.server.invalidate([phone.agent.leases[0].id], Result.ADMINISTRATIVE, net.now)
    net.run(1)
    net.expect("""
        1022.00 server > phone: INVALIDATE administrative 5060/udp
        1022.01 phone: lost 5060 administrative
        1022.01 phone > server: ACK success
    """)


def test_a_revoked_key_is_no_key(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert phone.key is not None and net.server is not None
    net.store.write_keys(net.guard.keyring.revoke([phone.key.id]))
    net.server.invalidate([phone.agent.leases[0].id], Result.ADMINISTRATIVE, net.now)
    net.run(1)
    assert phone.ports == []
    phone.agent.want(SIP, net.now)
    net.run(1)
    assert phone.ports == []
    assert net.server.counters["revoked-key"] > 0
    phone.key = None
    net.reboot(phone)
    phone.agent.want(SIP, net.now)
    net.run(1)
    assert phone.ports == []
    assert isinstance(phone.events[-1], Refused)
    net.store.write_keys(net.guard.keyring.forget(list(net.store.keys)))
    net.run(60)
    phone.agent.want(SIP, net.now)
    net.run(1)
    assert phone.ports == ["5060"]


@pytest.mark.parametrize(
    ("broken", "result"),
    [(b"\x81\x23\0\0", Result.UNSUPPORTED_ATTRIBUTE), (b"\x80\x04\0\1\0\0\0\0", Result.MALFORMED)],
)
def test_a_host_with_a_key_believes_that_it_was_not_understood(net: Network, broken: bytes, result: Result) -> None:
    """A newer host must learn that the server is older, and believes nothing without AUTH."""
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    phone.agent.resume(net.now)
    (question,) = phone.agent._questions.values()
    phone.agent.datagrams()
    newer = question.octets[:4] + (40 + len(broken)).to_bytes(2) + question.octets[6:40] + broken
    assert phone.agent.credentials is not None
    net.say(phone.agent.credentials.seal(newer, net.now), 11)
    net.silent(0.1)
    assert isinstance(phone.events[-1], Refused)
    assert phone.events[-1].result is result
    assert not phone.agent.counters["without-auth"]


def test_a_share_that_is_no_public_key_is_refused_in_plain_words(net: Network) -> None:
    phone = net.host("phone", 11)
    offer = Message(MessageType.REQUEST, 7, host_id=phone.agent.host_id, key_share=bytes(32))
    cookie = net.guard._cookies.make(phone.address, AGENT_PORT, net.now)
    net.say(encode(replace(offer, cookie=cookie)), 11)
    answer = decode(net.wire[-1][0])
    assert (answer.result, answer.reason) == (Result.MALFORMED, "this KEY-SHARE is no public key")


def test_an_unused_agreement_is_forgotten(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.run(0.025)
    del net.hosts[phone.address]
    net.run(10)
    assert states(net) == ["new"]
    net.run(3700)
    assert states(net) == []


def test_the_operator_is_told_what_cannot_be(net: Network) -> None:
    keyring = net.guard.keyring
    record, _ = keyring.make("phone", bytes(16), 0.0)
    with pytest.raises(UsageError, match="called"):
        keyring.make("phone", None, 0.0)
    with pytest.raises(UsageError, match="has a key already"):
        keyring.make("other", bytes(16), 0.0)
    with pytest.raises(UsageError, match="no key called"):
        keyring.find("nobody")
    assert keyring.find(record.key.label) == keyring.find("phone") == (record,)


def test_a_secret_is_never_printed() -> None:
    key = Key(1, b"s" * 32)
    assert "sss" not in repr(key)


def test_a_host_that_moves_takes_its_key_along(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.run(1)
    net.move(phone, 111)
    phone.agent.resume(net.now)
    net.run(1)
    assert [record.host for record in net.store.leases.values()] == [IPv4Address("10.66.0.111")]
    assert isinstance(phone.events[1], Granted)


def test_a_late_repeat_of_an_agreement_locks_nobody_out(net: Network) -> None:
    """The host has the first answer; the repeat reaches a server that has been started anew meanwhile."""
    keyring, host_id = net.guard.keyring, bytes(16)
    for key_id in (1, 2, 3, 4):
        keyring.agree(bytes([key_id]) * 32, key_id, "phone", host_id, float(key_id))
    assert [each.key.id for each in keyring.of_host(host_id)] == [2, 3, 4], "but not for ever more"
    keyring.used(2, host_id, 5.0)
    (used,) = keyring.of_host(host_id)
    assert (used.key.id, used.state) == (2, KeyState.ACTIVE)
