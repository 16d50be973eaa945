"""The programs of each role, the maps that they work on, and the sources that they come from.

Every compilation checks what is said of maps here against the C headers.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from dnat.dataplane import abi
from dnat.dataplane.bpf import MapType


@dataclass(frozen=True, slots=True)
class MapSpec:
    """Shape of one map; what it is for stands beside its ``MAP`` in the C headers."""

    kind: MapType
    key_size: int
    """Octets."""
    value_size: int
    """Octets."""
    entries: int


def _map(kind: MapType, key: type[ctypes._CData] | int, value: type[ctypes._CData] | int, entries: int) -> MapSpec:
    key_size, value_size = (size if isinstance(size, int) else ctypes.sizeof(size) for size in (key, value))
    return MapSpec(kind, key_size, value_size, entries)


INNER_OWNERS = _map(MapType.ARRAY, 4, abi.PortOwner, 65536)
"""What the map ``owners`` holds for each external address."""

SCRATCH_SIZE = 44
"""Octets of ``struct draw``, which user space never reads."""
PACKET_SIZE = 40
"""Octets of ``struct packet``, which user space never reads."""
JOB_SIZE = PACKET_SIZE + 24
"""Octets of ``struct job``, likewise."""
CUTTING_SIZE = 2 * 9216
"""Octets of ``struct cutting``, likewise."""

_SHARED = {
    "counters": _map(MapType.PERCPU_ARRAY, 4, 8, abi.COUNTERS),
    "fragments": _map(MapType.LRU_HASH, abi.FragmentKey, abi.Fragment, abi.FRAGMENTS_MAX),
}

MAPS: dict[abi.Role, dict[str, MapSpec]] = {
    "host": _SHARED
    | {
        "config": _map(MapType.ARRAY, 4, abi.HostConfig, 1),
        "ports": _map(MapType.ARRAY, 4, abi.PortWord, abi.PORT_WORDS),
        "pool": _map(MapType.ARRAY, 4, 4, abi.POOL_WORDS_MAX),
        "usage": _map(MapType.ARRAY, 4, abi.PoolUsage, abi.TRANSLATED_CLASSES),
        "pool_events": _map(MapType.RINGBUF, 0, 0, abi.POOL_EVENTS_SIZE),
        "ids": _map(MapType.ARRAY, 4, 4, abi.IDS_MAX),
        "peers": _map(MapType.LRU_HASH, abi.PeerKey, 8, abi.PEERS_MAX),
        "bindings_out": _map(MapType.HASH, abi.PortKey, abi.Binding, abi.BINDINGS_MAX),
        "recent_out": _map(MapType.ARRAY, 4, 8, abi.RECENT_MAX),
        "recent_in": _map(MapType.ARRAY, 4, 8, abi.RECENT_MAX),
        "scratch": _map(MapType.PERCPU_ARRAY, 4, SCRATCH_SIZE, 1),
        "bindings_in": _map(MapType.HASH, abi.PortKey, abi.Inward, abi.BINDINGS_MAX),
    },
    "router": _SHARED
    | {
        "config": _map(MapType.ARRAY, 4, abi.RouterConfig, 1),
        "addresses": _map(MapType.HASH, 4, abi.Address, abi.ADDRESSES_MAX),
        "owners": _map(MapType.ARRAY_OF_MAPS, 4, 4, abi.EXTERNALS_MAX),
        "hosts": _map(MapType.ARRAY, 4, abi.Host, abi.HOSTS_MAX),
        "links": _map(MapType.ARRAY, 4, abi.Link, abi.LINKS),
        "ways": _map(MapType.PERCPU_ARRAY, 4, abi.Way, abi.WAYS_MAX),
        "offences": _map(MapType.RINGBUF, 0, 0, abi.OFFENCES_SIZE),
        "offence_budget": _map(MapType.ARRAY, 4, abi.OffenceBudget, 1),
        "error_budget": _map(MapType.ARRAY, 4, abi.OffenceBudget, abi.ERROR_KINDS),
        "stages": _map(MapType.PROG_ARRAY, 4, 4, abi.STAGES),
        "job": _map(MapType.PERCPU_ARRAY, 4, JOB_SIZE, 1),
        "cutting": _map(MapType.PERCPU_ARRAY, 4, CUTTING_SIZE, 1),
        "waiting": _map(MapType.HASH, 4, abi.Held, abi.WAITING_MAX),
        "holding": _map(MapType.PERCPU_ARRAY, 4, abi.Held, 1),
    },
}

PROGRAMS: dict[abi.Role, tuple[str, ...]] = {
    "host": ("host_out", "host_in", "host_loop"),
    "router": ("router_wan", "router_wan_l3", "router_lan", "router_loop"),
}

XDP_PROGRAMS: dict[abi.Role, tuple[str, ...]] = {"host": (), "router": ("router_wan_xdp", "router_lan_xdp")}
"""Programs for XDP, beside those of the same name at TC. At most 15 letters: the kernel keeps no more."""

STAGE_PROGRAMS: dict[abi.Role, dict[abi.Stage, str]] = {
    "host": {},
    "router": {stage: f"router_{stage.name.lower()}" for stage in abi.Stage},
}
"""Programs for rare work, which others of the role call by the map ``stages``."""

SOURCE_FILES: dict[abi.Role, tuple[str, ...]] = {
    "host": ("host.c",),
    "router": ("router.c", "router_stages.c", "router_xdp.c"),
}
"""One translation unit, in this order."""


def map_definitions(role: abi.Role, descriptors: dict[str, int]) -> list[str]:
    """Compiler options that tell ``map.h`` which map is which, and what this module thinks of its shape."""
    return [
        f"-DMAP_{field}_{name}={value}"
        for name, spec in MAPS[role].items()
        for field, value in (
            ("FD", descriptors[name]),
            ("TYPE", int(spec.kind)),
            ("KEY", spec.key_size),
            ("VALUE", spec.value_size),
            ("ENTRIES", spec.entries),
        )
    ]
