"""What the kernel knows about addresses and links: the router's own, and the link addresses of LAN hosts."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface

from dnat.system.netlink import IPRoute, NetlinkError

_ETHERNET = 1
_USE = 0x01
"""NTF_USE, linux/neighbour.h: behave as if there were a packet for the neighbour."""
_NO_ADDRESS = 0x20 | 0x01
"""NUD_FAILED and NUD_INCOMPLETE, linux/neighbour.h."""


def local_addresses() -> list[tuple[int, IPv4Interface]]:
    """Interface index and address with prefix, for every IPv4 address of this network namespace."""
    with IPRoute() as netlink:
        return [
            (message["index"], IPv4Interface(f"{message.get_attr('IFA_LOCAL')}/{message['prefixlen']}"))
            for message in netlink.get_addr(family=socket.AF_INET)
        ]


def link(ifindex: int) -> tuple[int, bytes]:
    """MTU (octets) and link address of an interface; zero if there is no such interface, or it has no such address."""
    with IPRoute() as netlink:
        try:
            (found,) = netlink.get_links(ifindex)
        except NetlinkError:
            return 0, bytes(6)
        mac = found.get_attr("IFLA_ADDRESS") if found["ifi_type"] == _ETHERNET else None
        return int(found.get_attr("IFLA_MTU") or 0), bytes.fromhex(mac.replace(":", "")) if mac else bytes(6)


def link_addresses(ifindex: int) -> dict[IPv4Address, bytes]:
    """Link addresses (six octets) of the neighbours on an interface, as far as they are resolved."""
    with IPRoute() as netlink:
        table = {}
        for message in netlink.get_neighbours(family=socket.AF_INET, ifindex=ifindex):
            mac = message.get_attr("NDA_LLADDR")
            if message["ifindex"] == ifindex and mac and not message["state"] & _NO_ADDRESS:
                table[IPv4Address(message.get_attr("NDA_DST"))] = bytes.fromhex(mac.replace(":", ""))
        return table


def ask_for(ifindex: int, addresses: Iterable[IPv4Address]) -> None:
    """Have the kernel ask (ARP) for the link addresses of neighbours, as it does when it has something to send them."""
    with IPRoute() as netlink:
        for address in addresses:
            with contextlib.suppress(NetlinkError):  # the interface is gone, or the table is full
                netlink.neigh("set", dst=str(address), ifindex=ifindex, flags=_USE, state=0)
