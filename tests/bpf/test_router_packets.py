"""Every way of a packet through the router programs, and every reason to drop one."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from bpf_bench import (
    DROP,
    EXTERNAL,
    HOST_A,
    MAC_A,
    MAC_B,
    OTHER_EXTERNAL,
    OWN_EXTERNAL,
    PASS,
    REDIRECT,
    REMOTE,
    ROUTER,
    Case,
    RouterBench,
    echo,
    error,
    ether,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE
from scapy.packet import Packet, Raw

from dnat.dataplane import abi
from dnat.types import Owner, PortRange, Protocol

DEVICE = "10.66.0.50"


def one_hop_less(packet: Packet) -> Packet:
    copy = packet.copy()
    copy[IP].ttl -= 1
    return copy


def moved(says: str, packet: Packet, counted: str) -> Case:
    """A packet that is redirected, and changed in nothing but its TTL."""
    return Case(says, packet, REDIRECT, counted, leaves=one_hop_less(packet))


def inbound(external: str) -> dict[str, str]:
    return {"src": REMOTE, "dst": external}


WAN = [
    moved("UDP to its owner", udp(7, 20000, **inbound(EXTERNAL)), "router_in"),
    moved("TCP to its owner", tcp(80, 20016, **inbound(EXTERNAL)), "router_in"),
    moved(
        "a ping reply to the owner of its identifier",
        echo(20001, reply=True, **inbound(EXTERNAL)),
        "router_in",
    ),
    moved("a ping to the owner of its identifier", echo(20001, **inbound(EXTERNAL)), "router_in"),
    moved("to the router's own address, owned port", udp(7, 20000, **inbound(OWN_EXTERNAL)), "router_in"),
    moved("TTL 2 is enough", udp(7, 20000, ttl=2, **inbound(EXTERNAL)), "router_in"),
    moved(
        "an error, by the port of the packet it quotes",
        error(udp(20016, 7), **inbound(EXTERNAL)),
        "router_in",
    ),
    moved("an error that quotes a ping", error(echo(20001), kind=11, **inbound(EXTERNAL)), "router_in"),
    Case("unowned port", udp(7, 9, **inbound(EXTERNAL)), DROP, "drop_no_owner"),
    Case("unowned port of the router's own address", udp(7, 9, **inbound(OWN_EXTERNAL)), PASS, "router_to_self"),
    Case("unowned ping to the router", echo(9, **inbound(OWN_EXTERNAL)), PASS, "router_to_self"),
    Case("GRE to the router", ether(IP(src=REMOTE, dst=OWN_EXTERNAL) / GRE()), PASS, "router_to_self"),
    Case("GRE to nobody", ether(IP(src=REMOTE, dst=EXTERNAL) / GRE()), DROP, "drop_no_owner"),
    Case(
        "an error that quotes what this address never sent",
        error(udp(20016, 7, src="192.0.2.1"), **inbound(EXTERNAL)),
        DROP,
        "drop_no_owner",
    ),
    Case(
        "a header cut short",
        ether(IP(src=REMOTE, dst=EXTERNAL, proto=17) / Raw(b"\x4e\x20\x00\x07")),
        DROP,
        "drop_malformed",
    ),
    Case("another address: the stack's business", udp(7, 20000, src=REMOTE, dst=OTHER_EXTERNAL), PASS),
    Case("IPv6 passes untouched", ether(IPv6() / UDP()), PASS),
]

LAN = [
    moved("UDP from its owner", udp(20000, 7), "router_out"),
    moved("TCP from its owner", tcp(20015, 80), "router_out"),
    moved("a ping from the owner of its identifier", echo(20001), "router_out"),
    moved("from the router's own address", udp(20000, 7, src=OWN_EXTERNAL), "router_out"),
    moved(
        "an error, by the port it was asked at",
        error(udp(7, 20000, src=REMOTE, dst=EXTERNAL), src=EXTERNAL, dst=REMOTE),
        "router_out",
    ),
    moved("hairpin to another host", udp(20000, 20016, dst=EXTERNAL), "router_hairpin"),
    moved("hairpin to itself", udp(20000, 20001, dst=EXTERNAL), "router_hairpin"),
    moved("hairpin between addresses", udp(20000, 20016, dst=OWN_EXTERNAL), "router_hairpin"),
    moved(
        "hairpin of an error",
        error(udp(20016, 20001, dst=EXTERNAL), src=EXTERNAL, dst=EXTERNAL),
        "router_hairpin",
    ),
    moved("a plain LAN device to an owned port", udp(4000, 20016, src=DEVICE, dst=EXTERNAL), "router_hairpin"),
    Case(
        "to the router's own stack",
        udp(20000, 22, src=OWN_EXTERNAL, dst=OWN_EXTERNAL),
        PASS,
        "router_to_self",
    ),
    Case("to the router's LAN address", udp(20000, 53, dst=ROUTER), PASS, "router_to_self"),
    Case("to the router's WAN address", udp(20000, 53, dst=OWN_EXTERNAL), PASS, "router_to_self"),
    Case("into the LAN", udp(20000, 53, dst=DEVICE), PASS, "router_to_self"),
    Case("hairpin to nobody's port", udp(20000, 9, dst=EXTERNAL), DROP, "drop_no_owner"),
    Case("another host's port", udp(20016, 7), DROP, "drop_not_owner"),
    Case("nobody's port", udp(9, 7), DROP, "drop_not_owner"),
    Case("no port at all", ether(IP(src=EXTERNAL, dst=REMOTE) / GRE()), DROP, "drop_not_owner"),
    Case(
        "a header cut short",
        ether(IP(src=EXTERNAL, dst=REMOTE, proto=17) / Raw(b"\x4e\x20\x00\x07")),
        DROP,
        "drop_malformed",
    ),
    Case("multicast", udp(5353, 5353, dst="224.0.0.251"), PASS),
    Case("a plain LAN device to the outside", udp(4000, 7, src=DEVICE), PASS),
    Case("a host's LAN address", udp(5728, 5727, src=HOST_A, dst=ROUTER), PASS),
]

LOOP = [
    Case("to an owned port", udp(22, 20000, src=OWN_EXTERNAL, dst=OWN_EXTERNAL), REDIRECT, "router_from_self"),
    Case("to its own port", udp(22, 9, src=OWN_EXTERNAL, dst=OWN_EXTERNAL), PASS),
    Case("a ping comes back anyway", echo(20000, src=OWN_EXTERNAL, dst=OWN_EXTERNAL), PASS),
    Case("loopback traffic", udp(20000, 20000, src="127.0.0.1", dst="127.0.0.1"), PASS),
    Case(
        "a header cut short",
        ether(IP(src=OWN_EXTERNAL, dst=OWN_EXTERNAL, proto=6) / Raw(b"\x4e\x20\x00\x07")),
        DROP,
        "drop_malformed",
    ),
    Case(
        "a later fragment without a first one",
        ether(IP(src=OWN_EXTERNAL, dst=OWN_EXTERNAL, proto=17, frag=2) / Raw(b"x" * 16)),
        DROP,
        "drop_fragment_unknown",
    ),
]


@pytest.mark.parametrize("case", WAN, ids=str)
def test_arriving_from_the_wan(router: RouterBench, case: Case) -> None:
    router.check("router_wan", case)


@pytest.mark.parametrize("case", LAN, ids=str)
def test_arriving_from_the_lan(router: RouterBench, case: Case) -> None:
    router.check("router_lan", case)


@pytest.mark.parametrize("case", LOOP, ids=str)
def test_from_the_routers_own_programs(router: RouterBench, case: Case) -> None:
    router.check("router_loop", case)


def test_an_offence_is_reported(router: RouterBench) -> None:
    router.run("router_lan", udp(20016, 7))
    (offence,) = router.plane.drain_offences()
    assert (str(offence.address), offence.port, offence.protocol, offence.mac) == (EXTERNAL, 20016, 17, MAC_A)
    assert str(offence.host) == HOST_A
    assert router.plane.drain_offences() == []


def test_offences_are_reported_within_a_budget(router: RouterBench) -> None:
    def offend() -> tuple[list[bool], int]:
        counted = [router.run("router_lan", udp(20016, 7)).counted for _ in range(3)]
        return ["router_offence_unreported" in one for one in counted], len(router.plane.drain_offences())

    unreported, reported = router.with_one_left("offence_budget", 0, abi.OFFENCES_PER_SECOND, offend)
    assert (unreported, reported) == ([False, True, True], 1)


def test_a_host_whose_link_address_is_not_known_is_trusted_and_counted(router: RouterBench) -> None:
    router.plane.set_macs({IPv4Address(HOST_A): bytes(6)})
    packet = udp(20000, 7)
    case = Case("on trust", packet, REDIRECT, "router_out", one_hop_less(packet), also=("router_mac_unknown",))
    router.check("router_lan", case)


def test_without_configuration_the_lan_passes(router: RouterBench) -> None:
    router.plane._maps["config"].put(struct.pack("=I", 0), bytes(abi.RouterConfig()))
    router.check("router_lan", Case("not configured", udp(20016, 7), PASS))


def owner(first: int, last: int, host: str = HOST_A, protocol: Protocol = Protocol.ANY) -> Owner:
    return Owner(IPv4Address(EXTERNAL), PortRange(first, last), protocol, IPv4Address(host))


def test_owners_come_and_go(router: RouterBench) -> None:
    router.plane.set_owners([])
    assert router.plane.owners() == []
    router.check("router_wan", Case("nobody", udp(7, 20000, **inbound(EXTERNAL)), DROP, "drop_no_owner"))
    router.plane.apply(add=[owner(5060, 5061), owner(20000, 20003), owner(20004, 20005, DEVICE)])
    assert router.plane.owners() == [owner(5060, 5061), owner(20000, 20003), owner(20004, 20005, DEVICE)]
    router.plane.apply(add=[owner(20000, 20001, DEVICE)], remove=[owner(5060, 5061)])
    # The port has changed hands: what its former owner gives back is not taken from the new one.
    router.plane.apply(remove=[owner(20000, 20003)])
    assert router.plane.owners() == [owner(20000, 20001, DEVICE), owner(20004, 20005, DEVICE)]


def test_owners_of_one_protocol(router: RouterBench) -> None:
    owners = [owner(20000, 20001, HOST_A, Protocol.TCP), owner(20000, 20001, DEVICE, Protocol.UDP)]
    router.plane.set_owners(owners)
    assert router.plane.owners() == owners
    router.plane.set_macs({IPv4Address(HOST_A): bytes.fromhex(MAC_A.replace(":", ""))})
    router.check("router_lan", moved("its TCP port", tcp(20000, 80), "router_out"))
    router.plane.set_macs({IPv4Address(DEVICE): bytes.fromhex(MAC_B.replace(":", ""))})
    router.check("router_lan", Case("another's UDP port", udp(20000, 80), DROP, "drop_not_owner"))
    router.check("router_wan", Case("no ICMP", echo(20000, **inbound(EXTERNAL)), DROP, "drop_no_owner"))


def test_external_addresses_come_and_go_and_keep_their_owners(router: RouterBench) -> None:
    kept = [found for found in router.plane.owners() if found.address == IPv4Address(EXTERNAL)]
    lan = RouterBench.network
    router.plane.set_network(router.lan_ifindex, router.wan_ifindex, {IPv4Address(EXTERNAL): False}, lan=lan, local=[])
    assert router.plane.owners() == kept
    router.check("router_wan", Case("no longer served", udp(7, 20000, **inbound(OWN_EXTERNAL)), PASS))
    router.check("router_wan", moved("still served", udp(7, 20000, **inbound(EXTERNAL)), "router_in"))


MANY = [f"198.51.100.{number}" for number in range(10, 10 + 2 * abi.NEAR_ADDRESSES)]
"""More external addresses than the programs find by comparison."""


def serve(router: RouterBench, externals: list[str]) -> None:
    router.plane.set_network(
        router.lan_ifindex,
        router.wan_ifindex,
        {IPv4Address(external): False for external in externals},
        lan=RouterBench.network,
        local=[IPv4Address(ROUTER)],
        lan_mac=router.lan_mac,
    )


def test_more_addresses_than_are_near(router: RouterBench) -> None:
    serve(router, MANY)
    ports = {external: 20000 + at for at, external in enumerate(MANY)}
    router.plane.set_owners(
        Owner(IPv4Address(external), PortRange(port, port), Protocol.ANY, IPv4Address(HOST_A))
        for external, port in ports.items()
    )
    router.plane.set_macs({IPv4Address(HOST_A): bytes.fromhex(MAC_A.replace(":", ""))})
    for external, port in ports.items():
        into = inbound(external)
        router.check("router_wan", moved("its owner's port", udp(7, port, **into), "router_in"))
        router.check("router_wan", Case("another address's", udp(7, port + 1, **into), DROP, "drop_no_owner"))
        router.check("router_wan", Case("forged", udp(7, port, src=MANY[-1], dst=external), DROP, "drop_spoofed"))
        router.check("router_lan", moved("out", udp(port, 7, src=external), "router_out"))
        other = MANY[-1] if external != MANY[-1] else MANY[0]
        packet = udp(port, ports[other], src=external, dst=other)
        router.check("router_lan", moved("to another address", packet, "router_hairpin"))


def test_an_address_in_the_place_of_another_has_none_of_its_owners(router: RouterBench) -> None:
    serve(router, MANY)
    served = [Owner(IPv4Address(one), PortRange(20000, 20000), Protocol.ANY, IPv4Address(HOST_A)) for one in MANY]
    router.plane.set_owners(served)
    serve(router, [*MANY[1:], OTHER_EXTERNAL])
    assert router.plane.owners() == served[1:]
    router.check("router_wan", Case("it is gone", udp(7, 20000, **inbound(MANY[0])), PASS))
    router.check("router_wan", Case("its heir", udp(7, 20000, **inbound(OTHER_EXTERNAL)), DROP, "drop_no_owner"))
    for external in MANY[1:]:
        router.check("router_wan", moved("it stays", udp(7, 20000, **inbound(external)), "router_in"))


def test_unanswerable_icmp_belongs_to_nobody(router: RouterBench) -> None:
    packet = ether(IP(src=REMOTE, dst=EXTERNAL) / ICMP(type="redirect"))
    router.check("router_wan", Case("a redirect from outside", packet, DROP, "drop_error_unmapped"))


def test_another_lan_interface_is_the_way_to_hosts_that_were_there_before(router: RouterBench) -> None:
    router.plane.set_network(7, 8, {IPv4Address(EXTERNAL): False}, lan=router.network, local=[])
    hosts = [abi.Host.from_buffer_copy(value) for _, value in router.plane._maps["hosts"].items()]
    assert {host.ifindex for host in hosts if any(host.address)} == {7}


@pytest.mark.parametrize("octet", range(6))
def test_every_octet_of_the_link_address_counts(router: RouterBench, octet: int) -> None:
    known = bytearray(bytes.fromhex(MAC_A.replace(":", "")))
    known[octet] ^= 4
    router.plane.set_macs({IPv4Address(HOST_A): bytes(known)})
    router.check("router_lan", Case("another link address", udp(20000, 7), DROP, "drop_not_owner"))


def test_a_checksum_that_carries(router: RouterBench) -> None:
    packet = udp(7, 20000, **inbound(EXTERNAL))
    packet[IP].id = 0
    # One less in the TTL's octet is 0x0100 more, and 0xfeff is where that carries.
    packet[IP].id = (IP(bytes(packet[IP])).chksum - 0xFEFF) % 0xFFFF
    assert IP(bytes(packet[IP])).chksum == 0xFEFF
    router.check("router_wan", moved("carries", packet, "router_in"))
