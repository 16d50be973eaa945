"""The nftables table of a router, as JSON: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from dnat.system.nft_json import (
    AFTER_SRCNAT,
    FILTER,
    PRIVATE_NETWORKS,
    RAW,
    SRCNAT,
    WITH_PORTS,
    Json,
    Table,
    any_of,
    equal,
    meta,
    payload,
    prefix,
    span,
    unequal,
)
from dnat.types import PortRange

TABLE = Table("dnat-router")

PAP_PORTS = (5727, 5728)


@dataclass(frozen=True, slots=True)
class SharedAddress:
    """An external address that hosts share, as the router's firewall sees it."""

    address: IPv4Address
    own: bool
    """Whether it is also the router's own address; otherwise it is routed to the router."""
    ports: tuple[PortRange, ...]
    """The ports that hosts can lease."""


def router_table(
    lan: str,
    wan: str,
    shared: Sequence[SharedAddress],
    wan_addresses: Iterable[IPv4Address],
    own_ports: PortRange | None,
) -> list[Json]:
    """Chains and rules of a router, as objects for `nft.ensure_table`.

    ``own_ports`` are never leased: the router's own connections and the LAN devices that it masquerades use
    them. None means any port, which is right only if no shared address is the router's own.
    """
    own = sorted(s.address for s in shared if s.own)
    outside = {*wan_addresses, *(s.address for s in shared)}
    legitimate = sorted(a for a in outside if any(a in network for network in PRIVATE_NETWORKS))
    return [
        TABLE.chain("notrack-in", "filter", "prerouting", RAW),
        TABLE.chain("notrack-out", "filter", "output", RAW),
        TABLE.chain("input", "filter", "input", FILTER),
        TABLE.chain("forward", "filter", "forward", FILTER),
        TABLE.chain("masquerade-lan", "nat", "postrouting", SRCNAT),
        TABLE.chain("leave", "filter", "postrouting", AFTER_SRCNAT),
        *(rule for chain in ("notrack-in", "notrack-out") for one in shared for rule in _notrack(chain, one)),
        *_pap_from_lan(lan),
        _no_foreign_source(lan, wan),
        *_masquerade(wan, own, legitimate, own_ports),
        *_no_private_source(wan, legitimate),
    ]


def _notrack(chain: str, shared: SharedAddress) -> list[Json]:
    """Shared traffic needs no state: not even what the data plane leaves to the stack.

    Where the address is also the router's own, only the ports that can be leased are shared: the router's own
    connections stay tracked for whatever firewall it has.
    """
    rules = []
    for address, port in (("saddr", "sport"), ("daddr", "dport")):
        matches = [equal(payload("ip", address), str(shared.address))]
        if shared.own:
            if not shared.ports:
                continue
            matches.append(equal(meta("l4proto"), any_of(("tcp", "udp"))))
            matches.append(equal(payload("th", port), any_of([span(r) for r in sorted(shared.ports)])))
        rules.append(TABLE.rule(chain, "shared traffic has no state", *matches, {"notrack": None}))
    return rules


def _pap_from_lan(lan: str) -> list[Json]:
    ports = equal(payload("udp", "dport"), any_of(PAP_PORTS))
    drop = ({"counter": None}, {"drop": None})
    elsewhere = unequal(meta("iifname"), any_of(("lo", lan)))
    return [
        TABLE.rule("input", "PAP comes from the LAN only", elsewhere, ports, *drop),
        TABLE.rule("forward", "PAP comes from the LAN only", elsewhere, equal(meta("oifname"), lan), ports, *drop),
    ]


def _masquerade(
    wan: str, own: Sequence[IPv4Address], legitimate: Sequence[IPv4Address], own_ports: PortRange | None
) -> list[Json]:
    leaving = equal(meta("oifname"), wan)
    private = equal(payload("ip", "saddr"), any_of([prefix(network) for network in PRIVATE_NETWORKS]))
    rules = []
    if own_ports:
        for address in own:
            # The router's own packets keep their port unless it collides with a masqueraded one: then
            # another of the router's is taken, where the kernel by itself might take a leased one. Its ping
            # identifiers are arbitrary.
            source = equal(payload("ip", "saddr"), str(address))
            target = {"snat": {"addr": str(address), "port": span(own_ports)}}
            in_range = equal(payload("th", "sport"), span(own_ports))
            icmp, ported = equal(meta("l4proto"), "icmp"), equal(meta("l4proto"), any_of(("tcp", "udp")))
            rules.append(TABLE.rule("masquerade-lan", "the router's own pings", leaving, source, icmp, target))
            rules.append(
                TABLE.rule(
                    "masquerade-lan",
                    "the router's own connections",
                    leaving,
                    source,
                    ported,
                    in_range,
                    target,
                )
            )
    if legitimate:
        source = equal(payload("ip", "saddr"), any_of([str(a) for a in legitimate]))
        rules.append(TABLE.rule("masquerade-lan", "addresses of the outside", leaving, source, {"accept": None}))
    comment = "LAN devices that do not speak PAP"
    if own_ports:
        ported = equal(meta("l4proto"), any_of(WITH_PORTS))
        into = {"masquerade": {"port": span(own_ports)}}
        rules.append(TABLE.rule("masquerade-lan", comment, leaving, private, ported, into))
    rules.append(TABLE.rule("masquerade-lan", comment, leaving, private, {"masquerade": None}))
    return rules


def _no_foreign_source(lan: str, wan: str) -> Json:
    """RFC 2827: what the LAN sends out has a source that is reached by the LAN."""
    ways = (equal(meta("iifname"), lan), equal(meta("oifname"), wan))
    elsewhere = equal({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False)
    return TABLE.rule("forward", "no foreign source leaves", *ways, elsewhere, {"counter": None}, {"drop": None})


def _no_private_source(wan: str, legitimate: Sequence[IPv4Address]) -> list[Json]:
    leaving = equal(meta("oifname"), wan)
    private = equal(payload("ip", "saddr"), any_of([prefix(network) for network in PRIVATE_NETWORKS]))
    rules = []
    if legitimate:
        source = equal(payload("ip", "saddr"), any_of([str(a) for a in legitimate]))
        rules.append(TABLE.rule("leave", "addresses of the outside", leaving, source, {"accept": None}))
    rules.append(TABLE.rule("leave", "no private source leaves", leaving, private, {"counter": None}, {"drop": None}))
    return rules
