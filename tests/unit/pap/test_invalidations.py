"""Leases that are taken back, and ports that are not their user's, as transcripts."""

from __future__ import annotations

from pap_link import BLOCK, EXTERNAL, SIP, Network

from dnat.leases.pool import Pool
from dnat.pap.events import Lost
from dnat.pap.messages import Result
from dnat.types import PortRange, Protocol


def test_invalidation_is_repeated_until_acknowledged(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert net.server is not None
    net.lose("INVALIDATE", 2)
    net.server.invalidate([phone.agent.leases[0].id], Result.ADMINISTRATIVE, net.now)
    net.run(0.7)
    assert phone.ports == ["5060"]
    net.lose("ACK")
    net.run(10)
    net.expect("""
        1.00 server > phone: INVALIDATE administrative 5060/udp (lost)
        1.25 server > phone: INVALIDATE administrative 5060/udp (lost)
        1.75 server > phone: INVALIDATE administrative 5060/udp
        1.76 phone: lost 5060 administrative
        1.76 phone > server: ACK success (lost)
        2.75 server > phone: INVALIDATE administrative 5060/udp
        2.76 phone > server: ACK success
    """)


def test_invalidation_is_given_up_after_two_minutes(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert net.server is not None
    net.lose("INVALIDATE", 1000)
    net.server.invalidate([phone.agent.leases[0].id], Result.ADMINISTRATIVE, net.now)
    net.run(1000)
    times = [float(line.split()[0]) for line in net.transcript() if "INVALIDATE" in line]
    assert times[:7] == [1.0, 1.25, 1.75, 2.75, 4.75, 8.75, 16.75]
    assert 110 < times[-1] <= 121


def test_no_invalidation_leaves_before_it_is_durable(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert net.server is not None
    net.commit_time = 0.6
    net.server.invalidate([phone.agent.leases[0].id], Result.ADDRESS_CHANGED, net.now)
    net.run(1)
    net.expect("""
        1.60 server > phone: INVALIDATE address-changed 5060/udp
        1.61 phone: lost 5060 address-changed
        1.61 phone > server: ACK success
    """)


def test_an_invalidate_that_overtakes_the_grant_wins(net: Network) -> None:
    phone = net.host("phone", 11)
    net.fate = lambda octets: [1.0 if octets[1] == 1 else 0.01]
    phone.agent.want(SIP, net.now)
    net.run(0.02)
    assert net.server is not None
    net.server.invalidate(list(net.store.leases), Result.ADMINISTRATIVE, net.now)
    net.run(3)
    assert phone.ports == []
    assert not net.store.leases
    assert net.transcript()[-1].endswith("phone: refused reclaimed")


def test_ports_never_leased_are_named_without_an_identifier(net: Network) -> None:
    phone, thief = net.host("phone", 11), net.host("thief", 12)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert net.server is not None
    net.server.offence(thief.address, EXTERNAL, 5060, Protocol.UDP, net.now)
    net.server.offence(thief.address, EXTERNAL, 5060, Protocol.UDP, net.now)
    net.run(1)
    net.server.offence(phone.address, EXTERNAL, 5060, Protocol.UDP, net.now)
    net.run(1)
    net.expect("""
        1.00 server > thief: INVALIDATE not-owner 5060/udp
        1.01 thief > server: ACK success
    """)
    assert phone.ports == ["5060"]
    assert net.server.counters["offence-not-told"] == 1
    assert net.server.counters["offence-stale"] == 1


def test_a_host_that_holds_ports_of_another_stops_using_them(net: Network) -> None:
    phone, thief = net.host("phone", 11), net.host("thief", 12)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    thief.agent.adopt(phone.agent.leases, net.now)
    assert thief.ports == ["5060"]
    net.lose("REQUEST")
    assert net.server is not None
    net.server.offence(thief.address, EXTERNAL, 5060, Protocol.UDP, net.now)
    net.run(1)
    assert (thief.ports, phone.ports) == ([], ["5060"])
    assert [event.result for event in thief.events if isinstance(event, Lost)] == [Result.NOT_OWNER]


def test_a_lease_is_renewed_and_released_only_by_its_holder(net: Network) -> None:
    phone, thief = net.host("phone", 11), net.host("thief", 12)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    before = dict(net.store.leases)
    thief.agent.adopt(phone.agent.leases, net.now)
    thief.agent.release(phone.agent.leases[0].id, net.now)
    net.run(1)
    net.expect("""
        1.00 thief > server: REQUEST 5060/udp
        1.00 thief > server: RELEASE 5060/udp
        1.01 server > thief: RESPONSE success 5060/udp 0s
        1.01 server > thief: ACK success
        1.02 thief: released
    """)
    assert net.store.leases == before


def test_strays_of_a_changed_pool_can_be_taken_back(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    net.pool = Pool((EXTERNAL,), (PortRange(30000, 30999),), (PortRange(5060, 5061),))
    net.start_server()
    assert net.server is not None
    strays = net.server.table.strays()
    net.server.invalidate([record.id for record in strays], Result.ADDRESS_CHANGED, net.now)
    net.run(1)
    assert phone.ports == ["5060"]
