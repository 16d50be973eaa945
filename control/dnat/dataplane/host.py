"""The host's half of the data plane: which ports are its own, and the bindings that the programs made."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Self

from dnat.dataplane import abi
from dnat.dataplane.maps import ZERO, Plane, index_key, octets
from dnat.errors import UsageError
from dnat.types import PortRange, Protocol

Ports = Iterable[tuple[PortRange, Protocol]]

_NANOSECONDS = 1_000_000_000
_ORPHAN_SECONDS = 10
"""A half binding is normal for microseconds, while a program makes it."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A local port that leaves this host as another one."""

    protocol: Protocol
    """TCP, UDP or ICMP (query identifiers)."""
    local_port: int
    port: int
    """Locally unique port on the wire."""
    age: float
    """Seconds since it was made."""
    idle: float
    """Seconds since the last outbound packet."""
    expires_in: float
    """Seconds until it may go if nothing is sent; negative: due."""
    state: str
    """``opening``, ``established`` or ``closing`` for TCP; ``active`` for others."""


class HostPlane(Plane):
    """The host programs' maps. Open it after ``ensure_loaded("host", pins)``; one writer at a time."""

    role = "host"

    @classmethod
    def open(cls, pins: Path) -> Self:
        """Raises PlatformError when nothing is loaded there."""
        return cls(cls._open_maps(pins))

    def configure(self, external: IPv4Address, lan_ifindex: int, router: IPv4Address) -> None:
        """Set the shared address, the LAN interface, and the router's LAN address. Traffic is handled from
        here on.
        """
        config = self._config()
        config.external = octets(external)
        config.lan_ifindex = lan_ifindex
        config.router = octets(router)
        self._maps["config"].put(ZERO, bytes(config))

    def set_ports(self, native: Ports, translated: Ports) -> None:
        """Make these the host's ports: used as they are, and drawn from for translations.

        A port that was and stays in its set is in it throughout. Bindings of ports that are no longer
        translated to go. Raises UsageError when a port is in both sets, or more than POOL_LIST_MAX of one
        class and parity are translated.
        """
        native_bits, pool_bits = _bitmaps(native), _bitmaps(translated)
        pool = _pool_lists(pool_bits)
        for index, bits in native_bits.items():
            if bits & pool_bits.get(index, 0):
                raise UsageError(f"ports near {index * 16} are both native and translated")
        words = {}
        for key, value in self._maps["ports"].items():
            (index,) = struct.unpack("=I", key)
            word = bytes(abi.PortWord(native_bits.get(index, 0), pool_bits.get(index, 0)))
            if word != value:
                words[key] = word
        # The bits decide, the lists are hints, so the bits go first.
        self._maps["ports"].put_many(words)
        self._maps["pool"].put_many(
            {
                index_key(number * abi.POOL_LIST_MAX + position): struct.pack("=I", port)
                for number, ports in enumerate(pool)
                for position, port in enumerate(ports)
            }
        )
        config = self._config()
        config.pool_count[:] = [len(ports) for ports in pool]
        self._maps["config"].put(ZERO, bytes(config))
        self._drop_bindings_outside(pool_bits)

    def bindings(self, now: float) -> list[Binding]:
        """Every binding, by protocol and local port; ``now`` is ``time.monotonic()``."""
        found = []
        for key, value in self._maps["bindings_out"].items():
            local, binding = abi.PortKey.from_buffer_copy(key), abi.Binding.from_buffer_copy(value)
            protocol = abi.PROTOCOL_OF[abi.PortClass(local.port_class)]
            idle = now - binding.seen_ns / _NANOSECONDS
            found.append(
                Binding(
                    protocol=protocol,
                    local_port=local.port,
                    port=binding.port,
                    age=now - binding.created_ns / _NANOSECONDS,
                    idle=idle,
                    expires_in=binding.idle_seconds - idle,
                    state=_state_label(protocol, abi.TcpState(binding.state)),
                )
            )
        return sorted(found, key=lambda binding: (binding.protocol, binding.local_port))

    def sweep(self, now: float) -> int:
        """Remove what has been idle for too long (RFC 4787, 5382, 5508); returns how many bindings went.

        ``now`` is ``time.monotonic()``. Call it every few seconds; the programs themselves reuse the ports
        of expired bindings.
        """
        removed = 0
        bound = {}
        for key, value in self._maps["bindings_out"].items():
            binding = abi.Binding.from_buffer_copy(value)
            if now > binding.seen_ns / _NANOSECONDS + binding.idle_seconds:
                removed += self._remove(abi.PortKey.from_buffer_copy(key), binding.port)
            else:
                bound[key] = binding.port
        for key, value in self._maps["bindings_in"].items():
            unique, inward = abi.PortKey.from_buffer_copy(key), abi.Inward.from_buffer_copy(value)
            local = bytes(abi.PortKey(inward.port, unique.port_class, 0))
            old = now - inward.created_ns / _NANOSECONDS > _ORPHAN_SECONDS
            if old and bound.get(local) != unique.port and not self._is_bound(local, unique.port):
                self._maps["bindings_in"].delete(key)
        return removed

    def _config(self) -> abi.HostConfig:
        return abi.HostConfig.from_buffer_copy(self._maps["config"].get(ZERO) or b"")

    def _is_bound(self, local: bytes, port: int) -> bool:
        value = self._maps["bindings_out"].get(local)
        return value is not None and abi.Binding.from_buffer_copy(value).port == port

    def _remove(self, local: abi.PortKey, port: int) -> bool:
        # Who deletes from bindings_out may delete from bindings_in: a program may have been quicker.
        removed = self._maps["bindings_out"].delete(bytes(local))
        if removed:
            self._maps["bindings_in"].delete(bytes(abi.PortKey(port, local.port_class, 0)))
        return removed

    def _drop_bindings_outside(self, pool_bits: Mapping[int, int]) -> None:
        for key, value in self._maps["bindings_out"].items():
            local, binding = abi.PortKey.from_buffer_copy(key), abi.Binding.from_buffer_copy(value)
            if not pool_bits.get(binding.port >> 4, 0) & _bit(binding.port, local.port_class):
                self._remove(local, binding.port)


def _bit(port: int, port_class: int) -> int:
    return 1 << ((port & 15) * abi.CLASSES + port_class)


def _bitmaps(ports: Ports) -> dict[int, int]:
    """Word index to bits, as in ``struct port_word``."""
    words: dict[int, int] = {}
    for block, protocol in ports:
        for port in range(block.first, block.last + 1):
            for port_class in abi.CLASSES_OF[protocol]:
                words[port >> 4] = words.get(port >> 4, 0) | _bit(port, port_class)
    return words


def _pool_lists(pool_bits: Mapping[int, int]) -> list[list[int]]:
    """Ports by class * 2 + parity."""
    lists: list[list[int]] = [[] for _ in range(abi.POOL_LISTS)]
    for index, bits in sorted(pool_bits.items()):
        for port in range(index * 16, index * 16 + 16):
            for port_class in range(abi.TRANSLATED_CLASSES):
                if bits & _bit(port, port_class):
                    lists[port_class * 2 + (port & 1)].append(port)
    if max(map(len, lists)) > abi.POOL_LIST_MAX:
        raise UsageError(f"more than {abi.POOL_LIST_MAX} ports of one parity to translate to")
    return lists


def _state_label(protocol: Protocol, state: abi.TcpState) -> str:
    if protocol is not Protocol.TCP:
        return "active"
    both = abi.TcpState.FIN_SENT | abi.TcpState.FIN_RECEIVED
    if state & abi.TcpState.SHARED:
        return "established"
    if state & abi.TcpState.RESET or state & both == both:
        return "closing"
    return "established" if state & abi.TcpState.ESTABLISHED else "opening"
