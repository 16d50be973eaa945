"""The nftables table of a router: pure functions build it, one adapter commits it in one transaction.

Only the table ``dnat-router`` of family ``ip`` is ever touched. The builders write JSON
(libnftables-json(5)) in the form in which the kernel's rules are listed, so that "is it still there" is a
comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from dnat.errors import PlatformError
from dnat.system.journal import Entry, Journal
from dnat.types import PortRange

KIND = "nft table"
FAMILY, TABLE = "ip", "dnat-router"
"""Not plain ``dnat``: that is a keyword of nft, whose own listings of such a table it could not read back."""

PAP_PORTS = (5727, 5728)
PRIVATE_NETWORKS = tuple(IPv4Network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
"""RFC 1918, section 3."""

_RAW, _FILTER, _SRCNAT, _AFTER_SRCNAT = -300, 0, 100, 300
_WITH_PORTS = ("icmp", "tcp", "udp")

Json = dict[str, Any]


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
    """Chains and rules of a router, as objects for ``commit``.

    ``own_ports`` are never leased: the router's own connections and the LAN devices that it masquerades use
    them. None means any port, which is right only if no shared address is the router's own.
    """
    own = sorted(s.address for s in shared if s.own)
    outside = {*wan_addresses, *(s.address for s in shared)}
    legitimate = sorted(a for a in outside if any(a in network for network in PRIVATE_NETWORKS))
    return [
        _chain("notrack-in", "filter", "prerouting", _RAW),
        _chain("notrack-out", "filter", "output", _RAW),
        _chain("input", "filter", "input", _FILTER),
        _chain("forward", "filter", "forward", _FILTER),
        _chain("masquerade-lan", "nat", "postrouting", _SRCNAT),
        _chain("leave", "filter", "postrouting", _AFTER_SRCNAT),
        *(rule for chain in ("notrack-in", "notrack-out") for one in shared for rule in _notrack(chain, one)),
        *_pap_from_lan(lan),
        _no_foreign_source(lan, wan),
        *_masquerade(wan, own, legitimate, own_ports),
        *_no_private_source(wan, legitimate),
    ]


def ensure_table(journal: Journal, wanted: Sequence[Json]) -> list[str]:
    """Make the table hold exactly ``wanted``; returns what was changed, in words."""
    library = _library()
    current = _listing(library)
    if current is not None and _comparable(current) == _comparable(wanted):
        return []
    journal.add(KIND, f"nftables table {FAMILY} {TABLE}")
    table = {"table": {"family": FAMILY, "name": TABLE}}
    # Deleting what was just added works whether the table was there or not, and all of it is one transaction.
    _commit(library, [{"add": table}, {"delete": table}, {"add": table}, *({"add": one} for one in wanted)])
    return [f"{'made' if current is None else 'replaced'} the nftables table {FAMILY} {TABLE}"]


def undo(entry: Entry) -> None:
    """Handler of journal entries of this kind."""
    library = _library()
    if _listing(library) is not None:
        _commit(library, [{"delete": {"table": {"family": FAMILY, "name": TABLE}}}])


def _notrack(chain: str, shared: SharedAddress) -> list[Json]:
    """Shared traffic needs no state: not even what the data plane leaves to the stack.

    Where the address is also the router's own, only the ports that can be leased are shared: the router's own
    connections stay tracked for whatever firewall it has.
    """
    rules = []
    for address, port in (("saddr", "sport"), ("daddr", "dport")):
        matches = [_is(_payload("ip", address), str(shared.address))]
        if shared.own:
            if not shared.ports:
                continue
            matches.append(_is(_meta("l4proto"), _any_of(("tcp", "udp"))))
            matches.append(_is(_payload("th", port), _any_of([_port(r) for r in sorted(shared.ports)])))
        rules.append(_rule(chain, "shared traffic has no state", *matches, {"notrack": None}))
    return rules


def _pap_from_lan(lan: str) -> list[Json]:
    ports = _is(_payload("udp", "dport"), _any_of(PAP_PORTS))
    drop = ({"counter": None}, {"drop": None})
    elsewhere = _is_not(_meta("iifname"), _any_of(("lo", lan)))
    return [
        _rule("input", "PAP comes from the LAN only", elsewhere, ports, *drop),
        _rule("forward", "PAP comes from the LAN only", elsewhere, _is(_meta("oifname"), lan), ports, *drop),
    ]


def _masquerade(
    wan: str, own: Sequence[IPv4Address], legitimate: Sequence[IPv4Address], own_ports: PortRange | None
) -> list[Json]:
    leaving = _is(_meta("oifname"), wan)
    private = _is(_payload("ip", "saddr"), _any_of([_prefix(network) for network in PRIVATE_NETWORKS]))
    rules = []
    if own_ports:
        for address in own:
            # The router's own packets keep their port unless it collides with a masqueraded one: then
            # another of the router's is taken, where the kernel by itself might take a leased one. Its ping
            # identifiers are arbitrary.
            source = _is(_payload("ip", "saddr"), str(address))
            target = {"snat": {"addr": str(address), "port": _port(own_ports)}}
            in_range = _is(_payload("th", "sport"), _port(own_ports))
            icmp, ported = _is(_meta("l4proto"), "icmp"), _is(_meta("l4proto"), _any_of(("tcp", "udp")))
            rules.append(_rule("masquerade-lan", "the router's own pings", leaving, source, icmp, target))
            rules.append(
                _rule(
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
        source = _is(_payload("ip", "saddr"), _any_of([str(a) for a in legitimate]))
        rules.append(_rule("masquerade-lan", "addresses of the outside", leaving, source, {"accept": None}))
    comment = "LAN devices that do not speak PAP"
    if own_ports:
        ported = _is(_meta("l4proto"), _any_of(_WITH_PORTS))
        into = {"masquerade": {"port": _port(own_ports)}}
        rules.append(_rule("masquerade-lan", comment, leaving, private, ported, into))
    rules.append(_rule("masquerade-lan", comment, leaving, private, {"masquerade": None}))
    return rules


def _no_foreign_source(lan: str, wan: str) -> Json:
    """RFC 2827: what the LAN sends out has a source that is reached by the LAN."""
    ways = (_is(_meta("iifname"), lan), _is(_meta("oifname"), wan))
    elsewhere = _is({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False)
    return _rule("forward", "no foreign source leaves", *ways, elsewhere, {"counter": None}, {"drop": None})


def _no_private_source(wan: str, legitimate: Sequence[IPv4Address]) -> list[Json]:
    leaving = _is(_meta("oifname"), wan)
    private = _is(_payload("ip", "saddr"), _any_of([_prefix(network) for network in PRIVATE_NETWORKS]))
    rules = []
    if legitimate:
        source = _is(_payload("ip", "saddr"), _any_of([str(a) for a in legitimate]))
        rules.append(_rule("leave", "addresses of the outside", leaving, source, {"accept": None}))
    rules.append(_rule("leave", "no private source leaves", leaving, private, {"counter": None}, {"drop": None}))
    return rules


def _chain(name: str, kind: str, hook: str, priority: int) -> Json:
    fields = {"family": FAMILY, "table": TABLE, "name": name, "type": kind}
    return {"chain": {**fields, "hook": hook, "prio": priority, "policy": "accept"}}


def _rule(chain: str, comment: str, *expressions: Json) -> Json:
    fields = {"family": FAMILY, "table": TABLE, "chain": chain, "comment": comment}
    return {"rule": {**fields, "expr": list(expressions)}}


def _is(left: Json, right: Any) -> Json:
    return {"match": {"op": "==", "left": left, "right": right}}


def _is_not(left: Json, right: Any) -> Json:
    return {"match": {"op": "!=", "left": left, "right": right}}


def _meta(key: str) -> Json:
    return {"meta": {"key": key}}


def _payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _prefix(network: IPv4Network) -> Json:
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}


def _port(ports: PortRange) -> Any:
    return ports.first if len(ports) == 1 else {"range": [ports.first, ports.last]}


def _any_of(values: Sequence[Any]) -> Any:
    """A set, or the value itself if there is only one: that is how nft lists it."""
    return values[0] if len(values) == 1 else {"set": list(values)}


def _comparable(objects: Sequence[Json]) -> tuple[list[Any], dict[str, list[Any]]]:
    """Chains, and the rules of each chain in order, without what only the kernel knows (handles)."""
    chains = []
    rules: dict[str, list[Any]] = {}
    for one in objects:
        for kind, fields in one.items():
            plain = {key: value for key, value in fields.items() if key != "handle"}
            if kind == "chain":
                chains.append(_sorted_sets(plain))
            elif kind == "rule":
                rules.setdefault(plain["chain"], []).append(_sorted_sets(plain))
    return sorted(chains, key=repr), rules


def _sorted_sets(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: sorted(inner, key=repr) if key == "set" and isinstance(inner, list) else _sorted_sets(inner)
            for key, inner in sorted(value.items())
        }
    if isinstance(value, list):
        return [_sorted_sets(inner) for inner in value]
    return value


def _library() -> Any:
    try:
        import nftables

        library = nftables.Nftables()
    except (ImportError, OSError) as error:
        raise PlatformError(f"python-nftables is missing ({error}): apt install python3-nftables") from error
    library.set_json_output(True)
    library.set_stateless_output(True)
    return library


def _listing(library: Any) -> list[Json] | None:
    """The objects of our table; None if there is no such table."""
    tables = _run(library, [{"list": {"tables": {"family": FAMILY}}}])
    if not any(one.get("table", {}).get("name") == TABLE for one in tables):
        return None
    return _run(library, [{"list": {"table": {"family": FAMILY, "name": TABLE}}}])


def _commit(library: Any, commands: Sequence[Json]) -> None:
    _run(library, commands)


def _run(library: Any, commands: Sequence[Json]) -> list[Json]:
    code, output, error = library.json_cmd({"nftables": list(commands)})
    if code != 0:
        reason = " ".join(error.split()) or "no reason given"
        raise PlatformError(f"nftables refused the table {FAMILY} {TABLE}: {reason}")
    listed: list[Json] = output["nftables"] if output else []
    return listed
