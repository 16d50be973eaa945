"""Who has to leave when most of the SIP server's TCP connections are taken. Pure: connections in, some of them out.

A sender is an address, or 64 neighbouring ports of the address that the site shares, as the port server gives them out.
Kamailio knows a limit for all connections only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address

Connection = tuple[int, IPv4Address, int]
"""Port of the server, address and port of its peer."""

PLACES = 4096
"""Connections that Kamailio takes (tcp_max_connections)."""
CROWDED = PLACES // 2
"""Until so many are taken, everybody may have as many as he likes: the others find places, too."""
ALWAYS = 32
"""Connections that a sender keeps, however many senders there are."""
BLOCK = 64
"""Ports that count as one sender."""


def superfluous(connections: Iterable[Connection], shared: IPv4Address) -> list[Connection]:
    """What has to end so that CROWDED are left: of those who have most, what they have beyond a level for all."""
    of_sender: dict[tuple[IPv4Address, int], list[Connection]] = {}
    for each in connections:
        _, peer, port = each
        of_sender.setdefault((peer, port // BLOCK if peer == shared else 0), []).append(each)
    numbers = sorted(map(len, of_sender.values()))
    if sum(numbers) <= CROWDED:
        return []
    level = max(ALWAYS, _level(numbers))
    return [each for theirs in of_sender.values() for each in theirs[level:]]


def _level(numbers: Sequence[int]) -> int:
    """The most that each may have, where they have more than CROWDED together; ``numbers`` grow."""
    left = CROWDED
    for position, number in enumerate(numbers):
        share = left // (len(numbers) - position)
        if number > share:
            return share
        left -= number
    raise ValueError("there is room for all of them")
