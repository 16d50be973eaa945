"""The lab's network as data: who is there, with which addresses, routes, roles and configuration.

A LAN that shares one external address, its router, and the outside::

    phone1 .11   phone2 .12 …   sip .20
        └───────────┴─ switch ─────┘   10.66.0.0/24
                         │ lan .1
                      router           external address 198.51.100.1
                         │ wan .1
                        ext .2         203.0.113.0/24
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from dnat.errors import UsageError

LAN = IPv4Network("10.66.0.0/24")
WAN = IPv4Network("203.0.113.0/24")
ROUTER_LAN, ROUTER_WAN = IPv4Address("10.66.0.1"), IPv4Address("203.0.113.1")
SIP, EXT = IPv4Address("10.66.0.20"), IPv4Address("203.0.113.2")
ROUTED_EXTERNAL = IPv4Address("198.51.100.1")

MAX_PHONES = 100
_FIRST_PHONE = 11
_ANYWHERE = IPv4Network("0.0.0.0/0")
# Namespaces become file names and parts of interface-independent paths; iproute2 and shells must like them,
# too.
_PREFIX = re.compile(r"[a-z][a-z0-9-]{0,31}")
_NODE = re.compile(r"switch|router|sip|ext|phone[0-9]+")


@dataclass(frozen=True, slots=True)
class Port:
    """A node's end of a cable."""

    name: str
    """Interface name inside the node."""
    segment: str
    """``lan`` (a port of the switch) or ``wan`` (a cable between exactly two nodes)."""
    address: IPv4Interface


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the lab: a network namespace."""

    name: str
    ports: tuple[Port, ...]
    routes: tuple[tuple[IPv4Network, IPv4Address], ...] = ()
    """Destinations and gateways that the machine knows before dnat runs there."""
    roles: tuple[str, ...] = ()
    """What ``dnatctl up`` makes of it; a node without roles does not run dnat."""
    configuration: str | None = None
    """Text of its ``dnat.toml``; None where the defaults do."""

    @property
    def address(self) -> IPv4Address:
        """The address by which the lab's other nodes know it: of its first port."""
        return self.ports[0].address.ip


@dataclass(frozen=True)
class Topology:
    """All of a lab; labs with different prefixes can stand side by side."""

    prefix: str = "dnat"
    """Namespaces are called ``PREFIX-NODE``."""
    phones: int = 2
    """1 to 100."""
    own_address: bool = False
    """Whether the shared address is the router's own WAN address instead of one that is routed to it."""
    sip: str | None = None
    """``proxy`` or ``redirect``: what the node ``sip`` is beside being a host."""

    authentication: str = "open"
    """The server's mode: ``open``, ``tofu`` or ``strict``."""

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise UsageError(
                f"a lab cannot be called {self.prefix!r}: lower-case letters, digits and hyphens, "
                "a letter first, at most 32"
            )
        if not 1 <= self.phones <= MAX_PHONES:
            raise UsageError(f"a lab has 1 to {MAX_PHONES} phones, not {self.phones}")
        if self.sip not in (None, "proxy", "redirect"):
            raise UsageError(f'the SIP server of a lab is a "proxy" or a "redirect" server, not {self.sip!r}')

    @property
    def external(self) -> IPv4Address:
        """The address that the hosts share."""
        return ROUTER_WAN if self.own_address else ROUTED_EXTERNAL

    @property
    def switch(self) -> str:
        """Namespace of the LAN's bridge."""
        return self.namespace("switch")

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """In the order in which they should come up: the router serves the others."""
        routed = () if self.own_address else ((IPv4Network(self.external), ROUTER_WAN),)
        router = Node(
            "router",
            (Port("lan", "lan", _in(LAN, ROUTER_LAN)), Port("wan", "wan", _in(WAN, ROUTER_WAN))),
            routes=((_ANYWHERE, EXT),),
            roles=("server", "router"),
            configuration=_router_configuration(self.external, self.authentication),
        )
        ext = Node("ext", (Port("eth0", "wan", _in(WAN, EXT)),), routes=routed)
        phones = [_host(f"phone{n}", address) for n, address in enumerate(_phone_addresses(self.phones), 1)]
        return (router, ext, *phones, _sip_host(self.sip))

    def node(self, name: str) -> Node:
        """Raises UsageError if there is none of that name."""
        for node in self.nodes:
            if node.name == name:
                return node
        there = ", ".join(node.name for node in self.nodes)
        raise UsageError(f"no node called {name} in this lab; there are: {there}")

    def namespace(self, node: str) -> str:
        return f"{self.prefix}-{node}"

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Of the nodes and the switch."""
        return (self.switch, *(self.namespace(node.name) for node in self.nodes))


def belongs(namespace: str, prefix: str) -> bool:
    """Whether a namespace of this name is part of the lab ``prefix``, however many phones that has."""
    start, node = namespace[: len(prefix) + 1], namespace[len(prefix) + 1 :]
    return start == f"{prefix}-" and _NODE.fullmatch(node) is not None


def _host(name: str, address: IPv4Address) -> Node:
    return Node(name, (Port("eth0", "lan", _in(LAN, address)),), routes=((_ANYWHERE, ROUTER_LAN),), roles=("host",))


def _sip_host(mode: str | None) -> Node:
    host = _host("sip", SIP)
    if mode is None:
        return host
    configuration = f"""\
roles = ["host", "sip"]

[sip]
mode = "{mode}"
# One machine stands for all of the outside here, with load generators on it.
block_rate = 2000
address_rate = 5000
"""
    return replace(host, roles=("host", "sip"), configuration=configuration)


def _phone_addresses(count: int) -> list[IPv4Address]:
    candidates = (LAN.network_address + n for n in range(_FIRST_PHONE, LAN.num_addresses - 1))
    free = [address for address in candidates if address != SIP]
    return free[:count]


def _in(network: IPv4Network, address: IPv4Address) -> IPv4Interface:
    return IPv4Interface((address, network.prefixlen))


def _router_configuration(external: IPv4Address, authentication: str) -> str:
    return f"""\
roles = ["server", "router"]

[server]
external_addresses = ["{external}"]
authentication = "{authentication}"

[router]
lan = "lan"
wan = "wan"
"""
