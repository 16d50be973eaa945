"""A lease from renewal to renewal, to its end and its next holder, as transcripts."""

from __future__ import annotations

import pytest
from pap_link import BLOCK, FOUR_BLOCKS, LAN, SIP, Network

from dnat.leases.pool import Pool
from dnat.pap.events import Granted
from dnat.pap.messages import Want
from dnat.pap.policy import Policy
from dnat.types import Parity, Protocol, Purpose


def test_renewal_at_half_life(net: Network) -> None:
    net.policy = Policy((LAN,), lifetime=60)
    net.start_server()
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    net.silent(1)
    lease = phone.agent.leases[0]
    net.run(60)
    net.expect(f"""
        30.00 phone > server: REQUEST {lease.ports}/any
        30.01 server > phone: RESPONSE success {lease.ports}/any 60s
        30.02 phone: renewed {lease.ports} until 90.00
        60.00 phone > server: REQUEST {lease.ports}/any
        60.01 server > phone: RESPONSE success {lease.ports}/any 60s
        60.02 phone: renewed {lease.ports} until 120.00
    """)


def test_leases_of_one_age_are_renewed_together(net: Network) -> None:
    net.policy = Policy((LAN,), lifetime=60)
    net.start_server()
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    phone.agent.want(SIP, net.now)
    net.silent(29)
    net.run(2)
    assert [line for line in net.transcript() if "REQUEST" in line] == [
        f"30.00 phone > server: REQUEST {phone.ports[0]}/any 5060/udp"
    ]


def test_a_lease_works_until_it_expires_unanswered(net: Network) -> None:
    net.policy = Policy((LAN,), lifetime=60)
    net.start_server()
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(29)
    net.stop_server()
    net.run(30.9)
    assert phone.ports == ["5060"]
    net.run(1)
    net.expect("""
        30.00 phone > server: REQUEST 5060/udp
        30.25 phone > server: REQUEST 5060/udp
        30.75 phone > server: REQUEST 5060/udp
        31.75 phone > server: REQUEST 5060/udp
        33.75 phone > server: REQUEST 5060/udp
        37.75 phone > server: REQUEST 5060/udp
        45.75 phone: unanswered after 6
        45.75 phone > server: REQUEST 5060/udp
        60.00 phone: lost 5060 expired
    """)
    assert phone.ports == []


def test_a_dead_host_loses_its_ports_to_others_after_the_hold(net: Network) -> None:
    net.policy = Policy((LAN,), lifetime=60)
    net.start_server()
    dead, other = net.host("dead", 11), net.host("other", 12)
    dead.agent.want(SIP, net.now)
    net.silent(1)
    del net.hosts[dead.address]
    for _ in range(3):
        other.agent.want(SIP, net.now)
        net.run(69)
    other.agent.want(SIP, net.now)
    net.run(1)
    net.expect("""
        1.00 other > server: REQUEST want 5060 udp explicit
        1.01 server > other: RESPONSE port-taken
        1.02 other: refused port-taken
        70.00 other > server: REQUEST want 5060 udp explicit
        70.01 server > other: RESPONSE port-held retry after 110s
        70.02 other: refused port-held
        139.00 other > server: REQUEST want 5060 udp explicit
        139.01 server > other: RESPONSE port-held retry after 41s
        139.02 other: refused port-held
        208.00 other > server: REQUEST want 5060 udp explicit
        208.01 server > other: RESPONSE success 5060/udp 60s
        208.02 other: granted 5060
    """)


def test_release_and_the_same_ports_again(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    net.silent(1)
    before = phone.ports
    net.lose("ACK")
    phone.agent.release(phone.agent.leases[0].id, net.now)
    assert phone.ports == []
    net.run(1)
    net.expect(f"""
        1.00 phone > server: RELEASE {before[0]}/any
        1.01 server > phone: ACK success (lost)
        1.25 phone > server: RELEASE {before[0]}/any
        1.26 server > phone: ACK success
        1.27 phone: released
    """)
    assert not net.store.leases
    phone.agent.want(BLOCK, net.now)
    net.run(1)
    assert phone.ports == before


def test_fewer_and_exhausted(net: Network) -> None:
    one, two = net.host("one", 11), net.host("two", 12)
    one.agent.want(Want(200, Protocol.ANY, Purpose.EPHEMERAL), net.now)
    net.silent(1)
    two.agent.want(BLOCK, net.now)
    net.run(1)
    two.agent.want(Want(64, Protocol.UDP, Purpose.TRANSLATED, exact=True), net.now)
    net.run(1)
    free = 256 - 200
    granted = two.events[0]
    assert isinstance(granted, Granted)
    assert granted.fewer
    assert len(granted.lease.ports) <= free
    assert net.transcript()[-2:] == [
        "2.01 server > two: RESPONSE pool-exhausted",
        "2.02 two: refused pool-exhausted",
    ]


def test_specific_ports_and_ports_outside_the_pool(net: Network) -> None:
    phone = net.host("phone", 11)
    for first in (5060, 80):
        phone.agent.want(Want(1, Protocol.TCP, Purpose.EXPLICIT, first=first), net.now)
    net.run(1)
    net.expect("""
        0.00 phone > server: REQUEST want 5060 tcp explicit
        0.00 phone > server: REQUEST want 80 tcp explicit
        0.01 server > phone: RESPONSE success 5060/tcp 3600s
        0.01 server > phone: RESPONSE outside-pool
        0.02 phone: granted 5060
        0.02 phone: refused outside-pool
    """)


@pytest.mark.parametrize(("parity", "rest"), [(Parity.EVEN, 0), (Parity.ODD, 1)])
def test_parity(net: Network, parity: Parity, rest: int) -> None:
    phone = net.host("phone", 11)
    for _ in range(5):
        phone.agent.want(Want(3, Protocol.UDP, Purpose.EXPLICIT, parity), net.now)
    net.run(1)
    assert [lease.ports.first % 2 for lease in phone.agent.leases] == [rest] * 5


def test_quota(net: Network) -> None:
    net.policy = Policy((LAN,), max_ports_per_host=100, max_leases_per_host=3)
    net.start_server()
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    phone.agent.want(Want(64, Protocol.UDP, Purpose.EPHEMERAL, exact=True), net.now)
    phone.agent.want(BLOCK, net.now)
    phone.agent.want(SIP, net.now)
    net.run(1)
    assert [line.partition(" phone: ")[2] for line in net.transcript() if ">" not in line] == [
        f"granted {phone.ports[0]}",
        "refused quota-exceeded",
        f"granted {phone.ports[1]}, fewer",
        "refused quota-exceeded",
    ]
    assert sum(len(lease.ports) for lease in phone.agent.leases) == 100


def test_a_renewal_within_the_grace_finds_its_lease(net: Network) -> None:
    """The host's clock is slow: it asks when its lease has ended for the server already."""
    net.grace = 10
    net.start_server()
    phone = net.host("phone", 11)
    phone.agent.want(BLOCK, net.now)
    net.silent(1)
    (lease,) = net.store.leases.values()
    assert net.server is not None
    late = lease.expires_at + 9
    assert net.server.table.expire(late) == ()
    assert net.server.table.renew(lease.id, lease.host_id, 60, late)[0] is not None
    net.start_server()
    assert net.server.table.renew(lease.id, lease.host_id, 60, late + 1)[0] is None
    assert len(net.server.table.expire(late + 1)) == 2


def test_asking_for_ones_own_ports_by_number_renews_them(net: Network) -> None:
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.run(100)
    phone.agent.want(SIP, net.now)
    net.run(1)
    assert len(net.store.leases) == len(phone.agent.leases) == 1
    assert next(iter(net.store.leases.values())).expires_at == pytest.approx(100.01 + 3600)


def test_paired_pooling() -> None:
    addresses = (LAN[1], LAN[2])
    net = Network(Pool(addresses, FOUR_BLOCKS.ports))
    hosts = [net.host(f"host{n}", n) for n in range(11, 15)]
    for host in hosts * 2:
        host.agent.want(Want(50, Protocol.UDP, Purpose.EPHEMERAL), net.now)
        net.run(1)
    used = [{lease.address for lease in host.agent.leases} for host in hosts]
    assert [len(each) for each in used] == [1, 1, 1, 1]
    assert sorted(str(each) for one in used for each in one) == sorted(str(each) for each in addresses * 2)
