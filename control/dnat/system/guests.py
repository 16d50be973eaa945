"""Traffic of containers and virtual machines on a host: it leaves with the shared address, as that of programs does.

Whoever runs them (Docker, Podman, libvirt) masquerades what it forwards for them into the host's LAN address. A chain
of ours stands before that, and translates the source to the shared address and a port that is nobody's own; the data
plane takes it from there, as if a program of the host had sent it. Without such a neighbour there is no table: one that
translates has the kernel follow every flow of the machine (conntrack), which hosts otherwise need not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from dnat.system import flows, links, nft, routes, rtnetlink, sysctl
from dnat.system.journal import Entry, Journal
from dnat.system.nft_json import (
    AFTER_SRCNAT,
    DSTNAT,
    FILTER,
    MANGLE,
    OWN_PREFIX,
    PRIVATE_NETWORKS,
    RAW,
    SHARED_SPACE,
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
from dnat.types import PortRange, Protocol

KIND = "translation of guests"
SUBJECT = "translation of containers and virtual machines"
TABLE = Table("dnat-host")

MULTICAST_AND_BEYOND = IPv4Network("224.0.0.0/3")
STAND_IN = "192.0.0.8"
"""For the external address, within this machine: the dummy address of RFC 7600, which is nobody's destination."""

_CONF = Path("/proc/sys/net/ipv4/conf")
_LEGACY_TABLES = Path("/proc/thread-self/net/ip_tables_names")


@dataclass(frozen=True, slots=True)
class Translation:
    """What guests' packets become."""

    lan: str
    """The interface by which they leave."""
    external: IPv4Address
    ports: PortRange
    """Local ports, none of them native: the data plane has to translate them."""
    native: Mapping[Protocol, Sequence[PortRange]]
    """Ports of TCP and UDP that are this host's own, in order and with gaps between them; all others of the external
    address may be another host's.
    """


def guest_table(translation: Translation, elsewhere: Sequence[IPv4Network]) -> list[Json]:
    """Chains and rules for `nft.ensure_table`. What goes to ``elsewhere`` is left to others."""
    lan, external, ports = translation.lan, str(translation.external), span(translation.ports)
    leaving = equal(meta("oifname"), lan)
    forwarded = (
        leaving,
        unequal(meta("iifname"), lan),
        # What this machine sends itself came by no interface, which nft takes for one of another name.
        unequal({"fib": {"result": "type", "flags": ["saddr"]}}, "local"),
        _PRIVATE,
    )
    ported = equal(meta("l4proto"), any_of(WITH_PORTS))
    arriving = (
        equal(meta("iifname"), lan),
        equal(payload("ip", "daddr"), external),
        _TCP_OR_UDP,
        equal(payload("th", "dport"), ports),
    )
    outside = unequal(payload("ip", "daddr"), STAND_IN)
    share = max(1, len(translation.ports) // 8)
    is_new = _has(_ct("state"), "new")
    return [
        # Whoever comes first translates: the others' chains have SRCNAT.
        TABLE.chain("guests", "nat", "postrouting", SRCNAT - 1),
        TABLE.chain("answers", "filter", "input", FILTER),
        *(TABLE.rule("guests", "not by the default route", leaving, _to(each), _ACCEPT) for each in elsewhere),
        # A flow that finds no port is lost. So of what goes to one destination, more than ports can carry is left to
        # others (who cannot do that for hosts behind the same address). A closed connection is no longer counted as a
        # flow, and keeps its port for two minutes (nf_conntrack_tcp_timeout_time_wait). In use are at most three shares
        # open before those minutes, two of a burst and one for each minute; with two more the kernel finds a free one
        # soon, as it tries some at random.
        TABLE.memory("asked", _DESTINATION_TYPES, seconds=120),
        TABLE.memory("open", _DESTINATION_TYPES),
        *(
            TABLE.rule("guests", comment, *forwarded, _TCP_OR_UDP, outside, _more_than(limit, memory), _ACCEPT)
            for comment, limit, memory in (
                ("too often for our ports", _rate(share, burst=2 * share), "asked"),
                ("too many for our ports", {"ct count": {"val": 3 * share, "inv": True}}, "open"),
            )
        ),
        TABLE.rule(
            "guests", "as programs of the host", *forwarded, ported, {"snat": {"addr": external, "port": ports}}
        ),
        TABLE.rule("answers", "not to programs of the host", *arriving, is_new, {"counter": None}, {"drop": None}),
        *_hairpin(translation, arriving),
    ]


def _hairpin(translation: Translation, arriving: Sequence[Json]) -> list[Json]:
    """Between a guest and another host behind the external address.

    To this machine the address is its own, so a packet to it would not leave. It goes to a stand-in, and gets its
    destination back behind routes and conntrack; the answer takes the same way back. So do answers of a guest that
    another host has asked at a published port; conntrack knows that one by the external address.
    """
    lan, external = translation.lan, str(translation.external)
    published = (equal(_ct("direction"), "reply"), _has(_ct("status"), "dnat"))
    rules = []
    for protocol, native in translation.native.items():
        to_another = (
            unequal(meta("iifname"), lan),
            _PRIVATE,
            equal(payload("ip", "daddr"), external),
            unequal(payload(protocol.label, "dport"), any_of([span(each) for each in native])),
        )
        rules += [
            TABLE.rule("answers-to-hosts", "of what is published", *published, *to_another, _set("daddr", STAND_IN)),
            TABLE.rule("to-hosts", "a port that is not our own", *to_another, {"dnat": {"addr": STAND_IN}}),
        ]
    return [
        TABLE.chain("answers-of-hosts", "filter", "prerouting", RAW),
        TABLE.chain("answers-to-hosts", "filter", "prerouting", MANGLE),
        # What others publish here, leased or not, is theirs: their chains have DSTNAT.
        TABLE.chain("to-hosts", "nat", "prerouting", DSTNAT + 1),
        TABLE.chain("to-hosts-leaving", "filter", "postrouting", AFTER_SRCNAT),
        *rules,
        TABLE.rule(
            "to-hosts-leaving",
            "its destination again",
            equal(meta("oifname"), lan),
            equal(payload("ip", "daddr"), STAND_IN),
            _set("daddr", external),
        ),
        TABLE.rule(
            "answers-of-hosts",
            "to guests",
            *arriving,
            equal(payload("ip", "saddr"), external),
            _set("saddr", STAND_IN),
        ),
    ]


_ACCEPT: Json = {"accept": None}
_DESTINATION_TYPES = ("ipv4_addr", "inet_proto", "inet_service")
_TCP_OR_UDP = equal(meta("l4proto"), any_of(("tcp", "udp")))
_PRIVATE = equal(payload("ip", "saddr"), any_of([prefix(each) for each in (*PRIVATE_NETWORKS, SHARED_SPACE)]))


def _to(network: IPv4Network) -> Json:
    return equal(payload("ip", "daddr"), prefix(network))


def _ct(key: str) -> Json:
    return {"ct": {"key": key}}


def _has(flags: Json, flag: str) -> Json:
    return {"match": {"op": "in", "left": flags, "right": flag}}


def _rate(flows: int, burst: int) -> Json:
    """More new flows than so many at once, and ``flows`` in each minute after."""
    return {"limit": {"rate": flows, "burst": burst, "per": "minute", "inv": True}}


def _more_than(limit: Json, memory: str) -> Json:
    """Whether a destination is over a limit of its own."""
    destination = {"concat": [payload("ip", "daddr"), meta("l4proto"), payload("th", "dport")]}
    return {"set": {"op": "update", "elem": destination, "set": f"@{memory}", "stmt": [limit]}}


def _set(field: str, address: str) -> Json:
    return {"mangle": {"key": payload("ip", field), "value": address}}


def legacy_tables() -> list[str]:
    """Tables of iptables-legacy in this network namespace, of which nft knows nothing. For root's eyes only."""
    try:
        return _LEGACY_TABLES.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return []


def masquerader() -> str | None:
    """Who else translates the sources of what this machine forwards, as a person finds it; None: nobody.

    Raises PlatformError.
    """
    if not any(sysctl.read(f"net/ipv4/conf/{each.name}/forwarding") == "1" for each in _CONF.iterdir()):
        return None
    if "nat" in legacy_tables():
        return "iptables-legacy -t nat"
    for chain in nft.base_chains():
        foreign = not chain["table"].startswith(OWN_PREFIX) and chain["family"] in ("ip", "inet")
        if foreign and (chain["type"], chain["hook"]) == ("nat", "postrouting"):
            return f"nft {chain['family']} {chain['table']} {chain['name']}"
    return None


def ports_in_use(journal: Journal, external: IPv4Address) -> PortRange | None:
    """Those that guests speak from now; None: they are not translated to this address."""
    entry = journal.find(KIND, SUBJECT)
    if entry is None or str(external) not in entry.facts["addresses"]:
        return None
    return PortRange.parse(entry.facts["ports"])


def ensure(journal: Journal, translation: Translation) -> list[str]:
    """Translate so, and end the flows that were translated otherwise before.

    Compares and repairs; returns what was changed, in words. Raises PlatformError.
    """
    external, ports = str(translation.external), str(translation.ports)
    lan = links.interface(translation.lan)
    with rtnetlink.refusals("read the networks beside the default route"):
        elsewhere = routes.beside_default(lan.index)
    entry = journal.find(KIND, SUBJECT)
    facts = entry.facts if entry else {"addresses": [external], "ports": ports}
    settled = facts == {"addresses": [external], "ports": ports}
    if entry is None or not settled:
        addresses = list(dict.fromkeys([*facts["addresses"], external]))
        journal.renew(KIND, SUBJECT, addresses=addresses, ports=facts["ports"])
    changes = nft.ensure_table(TABLE, guest_table(translation, [*elsewhere, MULTICAST_AND_BEYOND]))
    if not settled:
        for address in facts["addresses"]:
            flows.end(IPv4Address(address), keep=translation.ports if address == external else None)
        journal.renew(KIND, SUBJECT, addresses=[external], ports=ports)
    return changes


def remove(journal: Journal) -> list[str]:
    """Leave guests to others again; returns what was changed, in words. Raises PlatformError."""
    entry = journal.find(KIND, SUBJECT)
    if entry is None:
        return []
    undo(entry)
    journal.forget(KIND, SUBJECT)
    return [f"removed the {TABLE}"]


def undo(entry: Entry) -> None:
    """Handler of journal entries of this kind."""
    nft.remove_table(TABLE)
    for address in entry.facts["addresses"]:
        flows.end(IPv4Address(address), keep=None)
