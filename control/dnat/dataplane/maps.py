"""What both planes have in common: the pinned maps of one role, and its counters."""

from __future__ import annotations

import ctypes
import struct
from ipaddress import IPv4Address
from pathlib import Path

from dnat.dataplane import abi, objects
from dnat.dataplane.bpf import Map
from dnat.dataplane.loader import maps_directory
from dnat.errors import PlatformError

ZERO = struct.pack("=I", 0)
"""Key of maps with one entry."""


def index_key(index: int) -> bytes:
    """Key of an array."""
    return struct.pack("=I", index)


def octets(address: IPv4Address) -> ctypes.Array[ctypes.c_uint8]:
    """An address as structures hold it."""
    return abi.BigEndian4(*address.packed)


class Plane:
    """The maps that the programs of one role work on."""

    role: abi.Role

    def __init__(self, maps: dict[str, Map]) -> None:
        self._maps = maps

    @classmethod
    def _open_maps(cls, pins: Path) -> dict[str, Map]:
        directory = maps_directory(pins)
        try:
            return {name: Map.pinned(directory / name) for name in objects.MAPS[cls.role]}
        except FileNotFoundError as error:
            raise PlatformError(
                f"no maps of the {cls.role} are pinned in {directory}: load the programs first"
            ) from error
        except PermissionError as error:
            raise PlatformError("the data plane's maps are open to root only") from error

    def counters(self) -> dict[str, int]:
        """Packets by reason since the maps were made, every counter of this role, drops first."""
        result = {}
        for counter in abi.counters_of(self.role):
            values = self._maps["counters"].get(index_key(counter)) or b""
            result[counter.label] = sum(struct.unpack(f"={len(values) // 8}Q", values))
        return result

    def close(self) -> None:
        """Close the maps; the programs go on. Safe to repeat."""
        for opened in self._maps.values():
            opened.close()
