"""The lab's network as data: who is there, with which addresses, routes, roles and configuration.

A LAN that shares one external address, its router, and the outside::

    phone1 .11   phone2 .12 …   sip .20
        └───────────┴─ switch ─────┘   10.66.0.0/24
                         │ lan .1
                      router           external address 198.51.100.1
                         │ wan .1
                        ext .2         203.0.113.0/24

With the server apart there are etcd1 .7, etcd2 .8, etcd3 .9 and server .5 (server2 .6) on the LAN, and up to four
routers .1 to .4, on the outside .1, .3, .4 and .5: each phone has one as gateway, the outside uses all by turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from dnat.errors import UsageError
from dnat.lab.etcd import Member

LAN = IPv4Network("10.66.0.0/24")
WAN = IPv4Network("203.0.113.0/24")
ROUTER_LAN, ROUTER_WAN = IPv4Address("10.66.0.1"), IPv4Address("203.0.113.1")
SIP, EXT = IPv4Address("10.66.0.20"), IPv4Address("203.0.113.2")
ROUTED_EXTERNAL = IPv4Address("198.51.100.1")
MAX_ROUTERS, MAX_SERVERS, ETCD_MEMBERS = 4, 2, 3

MAX_PHONES = 100
_FIRST_SERVER, _FIRST_ETCD = IPv4Address("10.66.0.5"), IPv4Address("10.66.0.7")
_FIRST_PHONE = 11
_ANYWHERE = IPv4Network("0.0.0.0/0")
# Namespaces become file names and parts of interface-independent paths; iproute2 and shells must like them,
# too.
_PREFIX = re.compile(r"[a-z][a-z0-9-]{0,31}")
_NODE = re.compile(r"switch|router[2-4]?|server2?|etcd[1-3]|sip|ext|phone[0-9]+")


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
    """Destinations and gateways that the machine knows before dnat runs there; several to one are used by turns."""
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
    routers: int = 1
    """1 to 4; more than one needs servers apart."""
    servers: int = 0
    """Port servers on machines of their own, with etcd; 0: the router is the server."""
    xdp: bool = False
    """Whether routers send plain packets on at XDP, and all cables are such that they can."""

    def __post_init__(self) -> None:
        check_prefix(self.prefix)
        if not 1 <= self.phones <= MAX_PHONES:
            raise UsageError(f"a lab has 1 to {MAX_PHONES} phones, not {self.phones}")
        if not 1 <= self.routers <= MAX_ROUTERS or not 0 <= self.servers <= MAX_SERVERS:
            raise UsageError(f"a lab has 1 to {MAX_ROUTERS} routers and at most {MAX_SERVERS} servers apart from them")
        if self.routers > 1 and not self.servers:
            raise UsageError("several routers follow a server apart from them: --server apart")
        if self.servers and self.own_address:
            raise UsageError("with a server apart the shared address is routed: no router has it as its own")
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
        gateways = [wan for _, _, wan in self._routers()]
        routed = () if self.own_address else tuple((IPv4Network(self.external), gateway) for gateway in gateways)
        ext = Node("ext", (Port("eth0", "wan", _in(WAN, EXT)),), routes=routed)
        phones = [
            _host(f"phone{n}", address, ROUTER_LAN + (n - 1) % self.routers, self._server_addresses)
            for n, address in enumerate(_phone_addresses(self.phones), 1)
        ]
        return (*self._infrastructure(), ext, *phones, _sip_host(self.sip, self._server_addresses))

    @property
    def members(self) -> tuple[Member, ...]:
        """Of the etcd cluster, if there is one."""
        if not self.servers:
            return ()
        return tuple(Member(f"etcd{n + 1}", str(_FIRST_ETCD + n)) for n in range(ETCD_MEMBERS))

    @property
    def _server_addresses(self) -> tuple[IPv4Address, ...]:
        """Those which hosts have to be told."""
        return tuple(_FIRST_SERVER + n for n in range(self.servers))

    def _routers(self) -> list[tuple[str, IPv4Address, IPv4Address]]:
        """Name, LAN and WAN address of each."""
        wan = [ROUTER_WAN, *(EXT + n for n in range(1, MAX_ROUTERS))]
        return [(_numbered("router", n), ROUTER_LAN + n, wan[n]) for n in range(self.routers)]

    def _infrastructure(self) -> list[Node]:
        """Everything between hosts and outside, what others need first."""
        nodes = []
        for member in self.members:
            nodes.append(_lan_node(member.name, IPv4Address(member.address)))
        for n, address in enumerate(self._server_addresses):
            configuration = _configuration(["server"], self.external, self.authentication, self.members)
            server = _lan_node(_numbered("server", n), address)
            nodes.append(replace(server, roles=("server",), configuration=configuration))
        roles = ("router",) if self.servers else ("server", "router")
        for name, lan, wan in self._routers():
            configuration = _configuration(list(roles), self.external, self.authentication, self.members, self.xdp)
            ports = (Port("lan", "lan", _in(LAN, lan)), Port("wan", "wan", _in(WAN, wan)))
            nodes.append(Node(name, ports, ((_ANYWHERE, EXT),), roles, configuration))
        return nodes

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


def check_prefix(prefix: str) -> None:
    """Raises UsageError for what is no lab's name; it becomes a part of paths, also of some that are removed."""
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(
            f"a lab cannot be called {prefix!r}: lower-case letters, digits and hyphens, a letter first, at most 32"
        )


def belongs(namespace: str, prefix: str) -> bool:
    """Whether a namespace of this name is part of the lab ``prefix``, however many phones that has."""
    start, node = namespace[: len(prefix) + 1], namespace[len(prefix) + 1 :]
    return start == f"{prefix}-" and _NODE.fullmatch(node) is not None


def _numbered(name: str, n: int) -> str:
    """``server``, ``server2`` …"""
    return name if n == 0 else f"{name}{n + 1}"


def _lan_node(name: str, address: IPv4Address, gateway: IPv4Address = ROUTER_LAN) -> Node:
    return Node(name, (Port("eth0", "lan", _in(LAN, address)),), routes=((_ANYWHERE, gateway),))


def _host(name: str, address: IPv4Address, gateway: IPv4Address, servers: Sequence[IPv4Address]) -> Node:
    return replace(_lan_node(name, address, gateway), roles=("host",), configuration=_host_table(servers) or None)


def _host_table(servers: Sequence[IPv4Address]) -> str:
    """Nothing where the server is the default gateway."""
    return f"[host]\nserver = {_strings(servers)}\n" if servers else ""


def _sip_host(mode: str | None, servers: Sequence[IPv4Address]) -> Node:
    host = _host("sip", SIP, ROUTER_LAN, servers)
    if mode is None:
        return host
    configuration = f"""\
roles = ["host", "sip"]

{_host_table(servers)}
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


def _configuration(
    roles: Sequence[str], external: IPv4Address, authentication: str, members: Sequence[Member], xdp: bool = False
) -> str:
    """Of a server, a router, or a machine that is both."""
    text = f"roles = {_strings(roles)}\n"
    if "server" in roles:
        text += f'\n[server]\nexternal_addresses = ["{external}"]\nauthentication = "{authentication}"\n'
    if "router" in roles:
        text += '\n[router]\nlan = "lan"\nwan = "wan"\n'
        text += 'xdp = "on"\n' if xdp else ""
    if members:
        text += f'\n[store]\nkind = "etcd"\nendpoints = {_strings([each.endpoint for each in members])}\n'
    return text


def _strings(values: Iterable[object]) -> str:
    """A TOML array."""
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"
