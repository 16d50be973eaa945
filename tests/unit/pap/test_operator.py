"""What an operator decides: reserved ports, permanent leases, draining, and another pool; as transcripts."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from pap_link import BLOCK, EXTERNAL, FOUR_BLOCKS, LAN, SIP, Network

from dnat.leases.pool import Pool
from dnat.pap.events import Lost, Refused
from dnat.pap.guard import Mode
from dnat.pap.messages import PERMANENT, Result, Want
from dnat.pap.policy import Policy, Reservation
from dnat.types import PortRange, Protocol, Purpose

SECOND = IPv4Address("198.51.100.2")
WELL_KNOWN = PortRange(5060, 5061)


def reserving(*hosts: str, permanent: bool = False, mode: Mode | None = None) -> Network:
    pool = Pool((EXTERNAL,), (PortRange(20480, 20735),), reserved=(WELL_KNOWN,))
    return Network(pool, Policy((LAN,), reservations=(Reservation(WELL_KNOWN, frozenset(hosts), permanent),)), mode)


@pytest.mark.parametrize("name", ["10.66.0.20", (20).to_bytes(16, "big").hex()])
def test_reserved_ports_are_for_the_hosts_that_are_named(name: str) -> None:
    net = reserving(name)
    proxy, phone = net.host("proxy", 20), net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    proxy.agent.want(SIP, net.now)
    net.run(1)
    net.expect("""
        0.00 proxy > server: REQUEST want 5060 udp explicit
        0.00 phone > server: REQUEST want 5060 udp explicit
        0.01 server > proxy: RESPONSE success 5060/udp 3600s
        0.01 server > phone: RESPONSE not-authorized
        0.02 proxy: granted 5060
        0.02 phone: refused not-authorized
    """)


def test_the_name_of_a_key_opens_a_reservation_to_who_has_the_key() -> None:
    net = reserving("proxy", mode=Mode.TOFU)
    proxy, phone = net.host("proxy", 20), net.host("phone", 11)
    record, changes = net.guard.keyring.make("proxy", None, net.now)
    net.store.write_keys(changes)
    proxy.key = record.key
    net.reboot(proxy)
    for host in (phone, proxy):
        host.agent.want(SIP, net.now)
    net.run(1)
    assert (proxy.ports, phone.ports) == (["5060"], [])


def test_reserved_and_excluded_ports_are_never_given_out_by_number_of_ports() -> None:
    pool = Pool(
        (EXTERNAL,),
        (PortRange(1000, 1099), PortRange(1200, 1299)),
        reserved=(PortRange(1010, 1019),),
        excluded=(PortRange(1050, 1249),),
    )
    net = Network(pool)
    phone = net.host("phone", 11)
    for _ in range(3):
        phone.agent.want(Want(200, Protocol.UDP, Purpose.EPHEMERAL), net.now)
        net.run(1)
    assert sorted(phone.ports) == ["1000-1009", "1020-1049", "1250-1299"]
    phone.agent.want(Want(1, Protocol.UDP, Purpose.EXPLICIT, first=1060), net.now)
    net.run(1)
    refused = phone.events[-1]
    assert isinstance(refused, Refused)
    assert refused.result is Result.OUTSIDE_POOL
    assert [str(each) for each in pool.ranges] == ["1000-1049", "1250-1299"]


def test_a_permanent_lease_outlives_years_without_its_host() -> None:
    net = reserving("10.66.0.20", permanent=True)
    proxy = net.host("proxy", 20)
    proxy.agent.want(SIP, net.now)
    net.run(1)
    assert proxy.agent.leases[0].expires_at == PERMANENT
    del net.hosts[proxy.address]
    net.silent(10 * 365 * 86400.0)
    net.hosts[proxy.address] = proxy
    net.reboot(proxy)
    proxy.agent.resume(net.now)
    net.run(1)
    assert proxy.ports == ["5060"]
    assert len(net.store.leases) == 1


@pytest.mark.parametrize("earlier", [2.0, 3600.0, 1e9])
def test_a_permanent_lease_is_served_by_a_clock_that_is_behind(earlier: float) -> None:
    """That of a server after a reboot, or of the other of two, sees more time left than a message can say."""
    net = reserving("10.66.0.20", permanent=True)
    net.silent(2e9)
    proxy = net.host("proxy", 20)
    proxy.agent.want(SIP, net.now)
    net.silent(1)
    net.start_server()
    net.now -= earlier
    net.reboot(proxy)
    proxy.agent.resume(net.now)
    net.run(1)
    assert [line.split(" ", 1)[1] for line in net.transcript()] == [
        "proxy > server: REQUEST resume",
        f"server > proxy: RESPONSE success 5060/udp {PERMANENT}s",
        "proxy: resumed 5060",
    ]


def test_a_permanent_lease_is_renewed_all_the_same() -> None:
    """Twice a day: so that a lost store is noticed."""
    net = reserving("10.66.0.20", permanent=True)
    proxy = net.host("proxy", 20)
    proxy.agent.want(SIP, net.now)
    net.silent(1)
    net.run(86400)
    assert len([line for line in net.transcript() if "REQUEST" in line]) == 2
    net.lose_store()
    net.silent(86400)
    assert proxy.ports == ["5060"]
    assert len(net.store.leases) == 1


def test_no_words_of_an_operator_keep_a_lease_from_ending(net: Network) -> None:
    """What is no character in UTF-8 was half done once: the lease ended in memory and stood in the store."""
    phone = net.host("phone", 11)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert net.server is not None
    net.server.invalidate([phone.agent.leases[0].id], Result.ADMINISTRATIVE, net.now, "f\udcfcr immer")
    net.run(1)
    assert not phone.ports and not net.store.leases
    lost = phone.events[-1]
    assert isinstance(lost, Lost)
    assert lost.reason == "f?r immer"


def test_draining_renews_and_grants_nothing() -> None:
    net = Network(policy=Policy((LAN,), lifetime=60))
    phone, late = net.host("phone", 11), net.host("late", 12)
    phone.agent.want(SIP, net.now)
    net.silent(1)
    assert net.server is not None
    net.server.decisions.draining = True
    late.agent.want(BLOCK, net.now)
    net.run(40)
    net.expect("""
        1.00 late > server: REQUEST want 64 any ephemeral
        1.01 server > late: RESPONSE shutting-down retry after 60s
        1.02 late: refused shutting-down
        30.00 phone > server: REQUEST 5060/udp
        30.01 server > phone: RESPONSE success 5060/udp 60s
        30.02 phone: renewed 5060 until 90.00
    """)


def test_an_address_that_is_drained_loses_its_hosts_to_the_others() -> None:
    net = Network(Pool((EXTERNAL, SECOND), FOUR_BLOCKS.ports))
    hosts = [net.host(f"host{n}", n) for n in (11, 12, 13)]
    for host in hosts:
        host.agent.want(BLOCK, net.now)
        net.silent(1)
    assert net.server is not None
    on_first = [host for host in hosts if host.agent.leases[0].address == EXTERNAL]
    assert 0 < len(on_first) < 3
    assert net.server.drain(frozenset({EXTERNAL}), net.now) == len(on_first)
    net.run(0.1)
    assert all([type(event) for event in host.events][-1] is Lost for host in on_first)
    for host in on_first:
        host.agent.want(BLOCK, net.now)
    net.run(0.1)
    assert {lease.address for host in hosts for lease in host.agent.leases} == {SECOND}
    hosts[0].agent.want(Want(1, Protocol.UDP, Purpose.EXPLICIT, address=EXTERNAL), net.now)
    net.run(0.1)
    assert net.transcript()[-1].endswith("refused outside-pool")


def test_draining_everything_leaves_nothing_to_grant() -> None:
    net = Network()
    phone = net.host("phone", 11)
    assert net.server is not None
    net.server.drain(frozenset({EXTERNAL}), net.now)
    phone.agent.want(BLOCK, net.now)
    net.run(1)
    assert net.transcript()[-1].endswith("refused pool-exhausted")


def test_draining_survives_a_failure_of_the_store() -> None:
    net = Network()
    phone = net.host("phone", 11)
    assert net.server is not None
    net.server.drain(frozenset({EXTERNAL}), net.now)
    net.broken_until = 1.0
    net.server.invalidate([1], Result.ADMINISTRATIVE, net.now)
    net.server.reset_table(net.store.table(net.pool), net.now)
    phone.agent.want(BLOCK, net.now)
    net.run(2)
    assert phone.ports == []


def test_another_pool_moves_everybody_at_once() -> None:
    net = Network()
    hosts = [net.host(f"host{n}", n) for n in range(11, 15)]
    for host in hosts:
        host.agent.want(BLOCK, net.now)
    net.silent(1)
    net.pool = Pool((SECOND,), FOUR_BLOCKS.ports)
    net.start_server()
    assert net.server is not None
    assert net.server.invalidate_strays(net.now) == 4
    net.run(0.1)
    assert all(host.ports == [] for host in hosts)
    for host in hosts:
        host.agent.want(BLOCK, net.now)
    net.run(0.1)
    assert {str(lease.address) for host in hosts for lease in host.agent.leases} == {str(SECOND)}


def test_ranges_of_one_size_keep_their_purposes_across_a_restart() -> None:
    net = Network()
    phone = net.host("phone", 11)
    purposes = (Purpose.EPHEMERAL, Purpose.TRANSLATED, Purpose.EXPLICIT)
    for purpose in purposes:
        phone.agent.want(Want(32, Protocol.ANY, purpose), net.now)
    net.run(1)
    before = {lease.purpose: lease.ports for lease in phone.agent.leases}
    for lease in phone.agent.leases:
        phone.agent.release(lease.id, net.now)
    net.run(1)
    net.start_server()
    for purpose in reversed(purposes):
        phone.agent.want(Want(32, Protocol.ANY, purpose), net.now)
    net.run(1)
    assert {lease.purpose: lease.ports for lease in phone.agent.leases} == before
