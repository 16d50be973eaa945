"""Facts about interfaces, and where the LAN's gateway is."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from dnat.errors import PlatformError
from dnat.system import routes, rtnetlink

_AF_INET = 2
_IFF_UP = 1
_WITH_MACS = (1, 772)
"""ARPHRD_ETHER and ARPHRD_LOOPBACK."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface."""

    name: str
    index: int
    mtu: int
    """Octets."""
    mac: str | None
    """``aa:bb:cc:dd:ee:ff``; None where the link has no such address."""
    up: bool
    addresses: tuple[IPv4Interface, ...]
    """IPv4 addresses with their networks, the primary one first."""

    def address_beside(self, neighbour: IPv4Address) -> IPv4Address | None:
        """Our address in the network that ``neighbour`` is in; None if we have none there."""
        return next((a.ip for a in self.addresses if neighbour in a.network), None)

    def broadcast_of(self, address: IPv4Address) -> IPv4Address | None:
        """The broadcast address of the network in which an address of ours is; None if that has none."""
        network = next((a.network for a in self.addresses if a.ip == address), None)
        return None if network is None or network.prefixlen > 30 else network.broadcast_address


@dataclass(frozen=True, slots=True)
class Uplink:
    """The way to a gateway or a server on the LAN."""

    interface: str
    index: int
    gateway: IPv4Address
    address: IPv4Address
    """Our own LAN address there, never the shared external one."""


def interface(name: str) -> Interface:
    """Facts about one interface; raises PlatformError if there is none of that name."""
    with rtnetlink.socket("read the interfaces") as rtnl:
        return _find(rtnl, name)


def interfaces() -> list[Interface]:
    """All interfaces, in the order of their indexes."""
    with rtnetlink.socket("read the interfaces") as rtnl:
        return _all(rtnl)


def default_gateway(name: str | None = None) -> Uplink:
    """The gateway of the best default route that has one; the same before and after dnat has put its route in front.

    With ``name``, of that interface's. Raises PlatformError if there is none.
    """
    with rtnetlink.socket("read the default route") as rtnl:
        only = _find(rtnl, name).index if name else None
        by_index = {link.index: link for link in _all(rtnl)}
        for route in routes.defaults():
            link = by_index.get(route.interface or 0)
            if route.gateway and link and link.addresses and only in (None, link.index):
                # A gateway outside of the interface's networks (an on-link route) leaves the primary address.
                address = link.address_beside(route.gateway) or link.addresses[0].ip
                return Uplink(link.name, link.index, route.gateway, address)
    down = ", ".join(link.name for link in by_index.values() if not link.up)
    raise PlatformError(
        f"there is no default route through a gateway{f' on {name}' if name else ''}, so no way to find the router: "
        f"connect the LAN{f' (down: {down})' if down else ''}, or add the route"
    )


def moved(uplink: Uplink) -> Uplink | None:
    """What the way to the gateway is by now, if the interface was made anew or renamed, or if its address or gateway is
    another one. None: it is the same, or it is not there for the moment.
    """
    with rtnetlink.socket("read the way to the gateway") as rtnl:
        found = _all(rtnl)
        link = next((each for each in found if each.index == uplink.index), None)
        link = link or next((each for each in found if each.name == uplink.interface), None)
        if link is None or not link.addresses:
            return None
        # Ours stands in front of whatever others say now.
        foreign = [r for r in routes.defaults() if r.protocol != routes.PROTOCOL and r.interface == link.index]
    gateways = [route.gateway for route in foreign if route.gateway]
    gateway = uplink.gateway if uplink.gateway in gateways or not gateways else gateways[0]
    own = uplink.address if uplink.address in [a.ip for a in link.addresses] else link.address_beside(gateway)
    if own is None:
        if not gateways:
            return None
        own = link.addresses[0].ip
    now = Uplink(link.name, link.index, gateway, own)
    return None if now == uplink else now


def default_interface() -> str | None:
    """The interface of the best default route, also of one without a gateway, as PPP's; None: there is none."""
    with rtnetlink.socket("read the default route") as rtnl:
        by_index = {link.index: link.name for link in _all(rtnl)}
        return next((by_index[r.interface] for r in routes.defaults() if r.interface in by_index), None)


def neighbour(address: IPv4Address) -> Uplink:
    """The way to a machine on a LAN that this one is attached to; raises PlatformError if there is none."""
    known = interfaces()
    for link in known:
        own = link.address_beside(address)
        if own and own != address and link.up:
            return Uplink(link.name, link.index, address, own)
    networks = ", ".join(f"{a.network} ({link.name})" for link in known for a in link.addresses)
    raise PlatformError(f"{address} is on no LAN of this machine; it is attached to: {networks or 'nothing'}")


def _find(rtnl: Any, name: str) -> Interface:
    found = _all(rtnl)
    for link in found:
        if link.name == name:
            return link
    raise PlatformError(f"no interface called {name}; there are: {', '.join(link.name for link in found)}")


def _all(rtnl: Any) -> list[Interface]:
    addresses: dict[int, list[IPv4Interface]] = {}
    for message in rtnl.get_addr(family=_AF_INET):
        # IFA_ADDRESS is the far end on point-to-point links; IFA_LOCAL is always ours.
        own = f"{message.get_attr('IFA_LOCAL')}/{message['prefixlen']}"
        addresses.setdefault(message["index"], []).append(IPv4Interface(own))
    found = [
        Interface(
            name=message.get_attr("IFLA_IFNAME"),
            index=message["index"],
            mtu=message.get_attr("IFLA_MTU"),
            # Tunnels call the address of their end so.
            mac=message.get_attr("IFLA_ADDRESS") if message["ifi_type"] in _WITH_MACS else None,
            up=bool(message["flags"] & _IFF_UP),
            addresses=tuple(addresses.get(message["index"], ())),
        )
        for message in rtnl.get_links()
    ]
    return sorted(found, key=lambda link: link.index)
