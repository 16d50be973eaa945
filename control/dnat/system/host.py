"""The addressing of a host that shares an external address (docs/architecture.md, "Host addressing").

The order matters: nothing may speak with the external address before ARP for it is silenced and the kernel's
own source ports are confined. ``down`` undoes in the reverse order.
"""

from __future__ import annotations

import errno
from ipaddress import IPv4Address
from typing import Any

from dnat.errors import PlatformError
from dnat.system import links, local_ports, routes, rtnetlink, sysctl
from dnat.system.journal import Entry, Journal
from dnat.types import PortRange

ADDRESS_KIND = "address"

LOOPBACK = "lo"


def ensure_host_network(
    journal: Journal,
    interface: str,
    external: IPv4Address,
    gateway: IPv4Address,
    ports: PortRange,
) -> list[str]:
    """Make this machine speak to the outside as ``external``, from ``ports``.

    Compares and repairs, so it may be called as often as one likes; with other arguments it switches over.
    Returns what was changed, in words; an empty list says that all was well. Raises PlatformError.
    """
    changes = ensure_arp_silent(journal, interface)
    changes += sysctl.ensure_own_source_accepted(journal, interface)
    changes += local_ports.ensure(journal, ports)
    with rtnetlink.socket(f"make {external} the address of this host") as rtnl:
        lan, loopback = links.interface(interface), links.interface(LOOPBACK)
        for index in routes.local_owners(external):
            if index != loopback.index:
                raise PlatformError(
                    f"{external} is an address of another interface of this machine (index {index}): "
                    "a host that shares an external address must not have it on its LAN"
                )
        changes += _ensure_address(journal, rtnl, external, loopback)
        changes += routes.ensure_local_mtu(journal, external, loopback.index, lan.mtu)
        like = next((r for r in routes.defaults() if r.gateway == gateway and r.interface == lan.index), None)
        changes += routes.ensure_front(journal, routes.default(gateway, lan.index, external, like))
        changes += _drop_former_addresses(journal, rtnl, external, loopback)
    return changes


def ensure_arp_silent(journal: Journal, interface: str) -> list[str]:
    """Neither answer nor send ARP for addresses of other interfaces, as real servers behind LVS do.

    The kernel takes the larger value of ``all`` and the interface, so the interface's own is enough.
    """
    conf = f"net/ipv4/conf/{interface}"
    links.interface(interface)
    return [
        *sysctl.ensure_at_least(journal, f"{conf}/arp_ignore", 1),
        *sysctl.ensure_at_least(journal, f"{conf}/arp_announce", 2),
    ]


def undo_address(entry: Entry) -> None:
    """Handler of journal entries of this kind."""
    with rtnetlink.socket(f"remove {entry.facts['address']}") as rtnl:
        _remove_address(rtnl, IPv4Address(entry.facts["address"]))


def _ensure_address(journal: Journal, rtnl: Any, address: IPv4Address, loopback: links.Interface) -> list[str]:
    changes = []
    if not loopback.up:
        raise PlatformError("the loopback interface lo is down; bring it up: ip link set lo up")
    if address not in {a.ip for a in loopback.addresses}:
        journal.add(ADDRESS_KIND, f"{address} on {LOOPBACK}", address=str(address))
        with rtnetlink.expect(errno.EEXIST):
            rtnl.addr("add", index=loopback.index, address=str(address), prefixlen=32)
        changes.append(f"added {address} to {LOOPBACK}")
    return changes


def _drop_former_addresses(journal: Journal, rtnl: Any, external: IPv4Address, loopback: links.Interface) -> list[str]:
    """After a switch to another external address: undo what the former one needed."""
    changes = []
    for entry in reversed(journal.entries):
        if entry.facts.get("address") in (None, str(external)):
            continue
        if entry.kind == routes.LOCAL_KIND:
            routes.undo_local(entry)
        elif entry.kind == ADDRESS_KIND:
            _remove_address(rtnl, IPv4Address(entry.facts["address"]))
            changes.append(f"removed {entry.facts['address']} from {loopback.name}")
        else:
            continue
        journal.forget(entry.kind, entry.subject)
    return changes


def _remove_address(rtnl: Any, address: IPv4Address) -> None:
    with rtnetlink.expect(errno.EADDRNOTAVAIL):
        rtnl.addr("del", index=links.interface(LOOPBACK).index, address=str(address), prefixlen=32)
