"""The last of the tests of a lab of machines: the package goes, and nothing stays."""

from __future__ import annotations

import pytest
from places import Installed, Place

BOOKKEEPING = (
    "etc/ld.so.cache",
    "home",
    "root",
    "run",
    "tmp",
    "var/cache",
    "var/lib/apt",
    "var/lib/dhcp",
    "var/lib/dpkg",
    "var/lib/systemd",
    "var/log",
    "var/tmp",
)
"""Where others leave something, too, while a machine runs."""


@pytest.mark.installed
def test_a_purge_leaves_nothing_behind(place: Place) -> None:
    assert isinstance(place, Installed)
    changed = set()
    for node in place.nodes:
        place.run(node, "dpkg", "--purge", "dnat", seconds=4 * place.seconds)
        lines = (place.before[node] ^ place.files(node)) | (place.routes[node] ^ place.ipv4_routes(node))
        changed |= {(node, line) for line in lines if not line.startswith(BOOKKEEPING)}
        left = place.run(node, "sh", "-c", "ls /run; mount -t bpf; nft list tables; systemctl list-unit-files")
        changed |= {(node, line) for line in left.out.splitlines() if "dnat" in line}
    assert sorted(changed) == []
