"""What a whole machine needs to be a node of the lab's network: ``python -m dnat.lab.machines NODE INTERFACE…``.

Prints shell commands for root; INTERFACE is what the machine calls the network cards of the node's ports, in their
order (router: LAN, WAN; others: the one, which keeps its name, as the lab's may be another card's).
For virtual machines; ``dnat.lab.builder`` builds the lab of namespaces.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dnat.errors import UsageError
from dnat.lab.topology import Node, Topology


def network_commands(node: Node, interfaces: Sequence[str]) -> list[str]:
    """Shell commands, safe to repeat after a boot, that name, address and route. Raises UsageError."""
    if len(interfaces) != len(node.ports):
        raise UsageError(f"{node.name} has {len(node.ports)} ports, and {len(interfaces)} interfaces were named")
    commands = []
    for interface, port in zip(interfaces, node.ports, strict=True):
        name = port.name if len(node.ports) > 1 else interface
        if interface != name:
            commands += [f"ip link set {interface} down", f"ip link set {interface} name {name}"]
        commands += [f"ip addr replace {port.address} dev {name}", f"ip link set {name} up"]
    commands += [f"ip route replace {destination} via {gateway}" for destination, gateway in node.routes]
    return commands


if __name__ == "__main__":
    name, *cards = sys.argv[1:]
    try:
        print("\n".join(network_commands(Topology().node(name), cards)))
    except UsageError as error:
        sys.exit(str(error))
