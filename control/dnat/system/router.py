"""What a router needs besides its data plane: forwarding, a fence behind unowned ports, nftables."""

from __future__ import annotations

from collections.abc import Sequence

from dnat.errors import UsageError
from dnat.system import links, local_ports, nft, router_rules, routes, rtnetlink, sysctl
from dnat.system.journal import Journal
from dnat.system.router_rules import SharedAddress
from dnat.types import PortRange


def ensure_router_network(
    journal: Journal,
    lan: str,
    wan: str,
    shared: Sequence[SharedAddress],
    own_ports: PortRange | None = None,
) -> list[str]:
    """Make this machine the router between the interfaces ``lan`` and ``wan`` for the shared addresses.

    ``own_ports`` is required if a shared address is also the router's own: the ports that are never leased,
    for the router's own connections and for LAN devices that do not speak PAP. Compares and repairs; returns
    what was changed, in words. Raises UsageError if the ports contradict each other, PlatformError if the
    kernel refuses.
    """
    _check_ports(shared, own_ports)
    lan_mtu = links.interface(lan).mtu
    wan_addresses = [a.ip for a in links.interface(wan).addresses]
    wanted = router_rules.router_table(lan, wan, shared, wan_addresses, own_ports)
    changes = nft.ensure_journalled(journal, router_rules.TABLE, wanted)
    if own_ports and any(one.own for one in shared):
        changes += local_ports.ensure(journal, own_ports)
        changes += sysctl.ensure_own_source_accepted(journal, lan)
    with rtnetlink.refusals("set up the routes of a router"):
        for one in shared:
            if not one.own:
                # Without it a packet to a port that nobody owns would follow the default route back to the
                # outside.
                changes += routes.ensure_front(journal, routes.blackhole(one.address))
                continue
            for index in routes.local_owners(one.address):
                # Packets to hosts that share the router's address go over the loopback, and would offer its MTU.
                changes += routes.ensure_local_mtu(journal, one.address, index, lan_mtu)
    return [*changes, *sysctl.ensure_forwarding(journal)]


def _check_ports(shared: Sequence[SharedAddress], own_ports: PortRange | None) -> None:
    for one in shared:
        if not one.own:
            continue
        if own_ports is None:
            raise UsageError(f"{one.address} is the router's own address, so the router needs ports of its own")
        for leased in one.ports:
            if leased.overlaps(own_ports):
                raise UsageError(f"the router's own ports {own_ports} overlap the ports {leased} that hosts can lease")
