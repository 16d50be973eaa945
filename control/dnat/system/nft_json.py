"""Words of nftables' JSON (libnftables-json(5)), in the form in which the kernel's rules are listed.

So "is it still there" is a comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from dnat.types import PortRange

FAMILY = "ip"
OWN_PREFIX = "dnat-"
"""Of the names of dnat's tables. Not plain ``dnat``: that is a keyword of nft, which could not read back its own
listing of such a table.
"""

RAW, MANGLE, DSTNAT, FILTER, SRCNAT, AFTER_SRCNAT = -300, -150, -100, 0, 100, 300
"""Priorities of chains."""
WITH_PORTS = ("icmp", "tcp", "udp")

PRIVATE_NETWORKS = tuple(IPv4Network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
"""RFC 1918, section 3."""
SHARED_SPACE = IPv4Network("100.64.0.0/10")
"""RFC 6598, section 7: behind a provider's NAT."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of dnat's own."""

    name: str

    def __str__(self) -> str:
        return f"nftables table {FAMILY} {self.name}"

    @property
    def json(self) -> Json:
        return {"table": {"family": FAMILY, "name": self.name}}

    def chain(self, name: str, kind: str, hook: str, priority: int) -> Json:
        fields = {"family": FAMILY, "table": self.name, "name": name, "type": kind}
        return {"chain": {**fields, "hook": hook, "prio": priority, "policy": "accept"}}

    def memory(self, name: str, key: Sequence[str], seconds: int | None = None) -> Json:
        """A set that packets put members into, for so long; None: until their flows have ended (``ct count``)."""
        fields = {"family": FAMILY, "table": self.name, "name": name, "type": list(key), "size": 65535}
        return {"set": {**fields, "flags": ["timeout"], "timeout": seconds} if seconds else fields}

    def rule(self, chain: str, comment: str, *expressions: Json) -> Json:
        fields = {"family": FAMILY, "table": self.name, "chain": chain, "comment": comment}
        return {"rule": {**fields, "expr": list(expressions)}}


def equal(left: Json, right: Any) -> Json:
    return {"match": {"op": "==", "left": left, "right": right}}


def unequal(left: Json, right: Any) -> Json:
    return {"match": {"op": "!=", "left": left, "right": right}}


def meta(key: str) -> Json:
    return {"meta": {"key": key}}


def payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def prefix(network: IPv4Network) -> Any:
    if network.prefixlen == network.max_prefixlen:
        return str(network.network_address)
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}


def span(ports: PortRange) -> Any:
    return ports.first if len(ports) == 1 else {"range": [ports.first, ports.last]}


def any_of(values: Sequence[Any]) -> Any:
    """A set, or the value itself if there is only one: that is how nft lists it.

    Networks in it must not be neighbours: nft would list them as one range.
    """
    return values[0] if len(values) == 1 else {"set": list(values)}


_UNORDERED = ("set", "flags")


def comparable(objects: Sequence[Json]) -> tuple[list[Any], dict[str, list[Any]]]:
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
        members = sorted(value.items())
        return {key: _sorted(inner) if key in _UNORDERED else _sorted_sets(inner) for key, inner in members}
    if isinstance(value, list):
        return [_sorted_sets(inner) for inner in value]
    return value


def _sorted(members: Any) -> list[Any]:
    # A single flag is a list of one to some versions of nft, and itself to others.
    return sorted(members, key=repr) if isinstance(members, list) else [members]
