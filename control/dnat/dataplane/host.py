"""The host's half of the data plane: which ports are its own, and the bindings that the programs made."""

from __future__ import annotations

import math
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Self

from dnat.dataplane import abi
from dnat.dataplane.bpf import Map, object_get
from dnat.dataplane.loader import maps_directory
from dnat.dataplane.maps import ZERO, Plane, index_key, octets
from dnat.dataplane.ring import RingBuffer
from dnat.errors import UsageError
from dnat.types import PortRange, Protocol

Ports = Iterable[tuple[PortRange, Protocol]]
StaticBindings = Mapping[tuple[Protocol, int], int]
"""Protocol and local port to locally unique port."""

_NANOSECONDS = 1_000_000_000
_ORPHAN_SECONDS = 10
"""A half binding is normal for microseconds, while a program makes it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the programs do where a NAT has a choice."""

    filters_by_address: bool = False
    """A binding receives only from addresses that it has sent to; else from anybody (RFC 4787, section 5)."""
    inbound_refreshes: bool = False
    """Inbound packets count as use of a binding; RFC 4787, REQ-6 makes it an option."""
    answers_refusals: bool = True
    """Programs are told by ICMP (type 3, code 13) what is dropped for good."""
    low_water: int = 0
    """Free ports of a class at which there is a PoolEvent."""
    udp: int = abi.UDP_SECONDS
    """Seconds without an outbound packet until a binding may go; the same for the following ones."""
    tcp_established: int = abi.TCP_ESTABLISHED_SECONDS
    tcp_transitory: int = abi.TCP_TRANSITORY_SECONDS
    """Before a connection is established, and after it was closed or reset."""
    icmp: int = abi.ICMP_SECONDS

    @property
    def _flags(self) -> int:
        return (
            abi.HostFlag.FILTERS_BY_ADDRESS * self.filters_by_address
            | abi.HostFlag.INBOUND_REFRESHES * self.inbound_refreshes
            | abi.HostFlag.ANSWERS_REFUSALS * self.answers_refusals
        )

    def apply(self, config: abi.HostConfig) -> None:
        """Write it into the programs' configuration."""
        config.flags = config.flags & abi.HostFlag.CANNOT_GET_PORTS | self._flags
        config.low_water = self.low_water
        config.idle_seconds[abi.IdleTimer.UDP] = self.udp
        config.idle_seconds[abi.IdleTimer.TCP_ESTABLISHED] = self.tcp_established
        config.idle_seconds[abi.IdleTimer.TCP_TRANSITORY] = self.tcp_transitory
        config.idle_seconds[abi.IdleTimer.ICMP] = self.icmp


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
    """Seconds since the last packet that counts as use."""
    expires_in: float
    """Seconds until it may go if nothing is sent; negative: due; infinite: static."""
    state: str
    """``opening``, ``established`` or ``closing`` for TCP; ``active`` for others."""
    static: bool
    """Made by ``set_static``."""


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """The pool runs low, or a packet found it empty."""

    port_class: abi.PortClass
    free: int
    """Ports left; 0: a packet was dropped for want of one."""


class HostPlane(Plane):
    """The host programs' maps. Open it after ``ensure_loaded("host", pins)``; one process writes at a time, from
    any of its threads.
    """

    role = "host"

    def __init__(self, maps: dict[str, Map], events: RingBuffer) -> None:
        super().__init__(maps)
        self._events = events
        self._writing = threading.RLock()

    @classmethod
    def open(cls, pins: Path) -> Self:
        """Raises PlatformError when nothing is loaded there."""
        maps = cls._open_maps(pins)
        return cls(maps, RingBuffer(object_get(maps_directory(pins) / "pool_events"), abi.POOL_EVENTS_SIZE))

    def close(self) -> None:
        super().close()
        self._events.close()

    def configure(
        self, external: IPv4Address, lan_ifindex: int, router: IPv4Address, policy: Policy = Policy()
    ) -> None:
        """Set the shared address, the LAN interface, the router's LAN address and the policy. Traffic is handled
        from here on.
        """
        with self._writing:
            config = self._config()
            config.external = octets(external)
            config.lan_ifindex = lan_ifindex
            config.router = octets(router)
            policy.apply(config)
            self._put_config(config)

    def set_ports(self, native: Ports, translated: Ports) -> None:
        """Make these the host's ports: used as they are, and drawn from for translations.

        A port that was and stays in its set is in it throughout. Bindings of ports that are no longer
        translated to go. Raises UsageError when a port is in both sets, or when those to translate to touch more
        than POOL_WORDS_MAX runs of sixteen.
        """
        native_bits, pool_bits = _bitmaps(native), _bitmaps(translated)
        if len(pool_bits) > abi.POOL_WORDS_MAX:
            raise UsageError(f"more than {abi.POOL_WORDS_MAX * 16} ports to translate to")
        for index, bits in native_bits.items():
            if bits & pool_bits.get(index, 0):
                raise UsageError(f"ports near {index * 16} are both native and translated")
        with self._writing:
            words = {}
            for key, value in self._maps["ports"].items():
                (index,) = struct.unpack("=I", key)
                word = abi.PortWord.from_buffer_copy(value)
                fresh = (native_bits.get(index, 0), pool_bits.get(index, 0))
                if (word.native, word.pool) != fresh:
                    words[key] = bytes(abi.PortWord(*fresh, word.bound))
            # The bits decide, the lists are hints, so the bits go first.
            self._maps["ports"].put_many(words)
            self._put_list("pool", sorted(pool_bits))
            ids = _whole_ports(native_bits, pool_bits)[: abi.IDS_MAX]
            self._put_list("ids", ids)
            config = self._config()
            config.pool_words = len(pool_bits)
            config.pool_ports[:] = [
                sum((bits & _of_class(port_class)).bit_count() for bits in pool_bits.values())
                for port_class in range(abi.TRANSLATED_CLASSES)
            ]
            config.id_count = len(ids)
            self._put_config(config)
            self._drop_bindings_outside(pool_bits)
            self._settle_usage()

    def set_static(self, wanted: StaticBindings) -> None:
        """Make these the static bindings; others of the same local ports go. Their unique ports have to be among
        those that ``set_ports`` translates to, before or right after.
        """
        with self._writing:
            for found in self.bindings(0):
                if found.static and wanted.get((found.protocol, found.local_port)) != found.port:
                    self._remove(abi.PortKey(found.local_port, _class_of(found.protocol), 0), found.port)
            for (protocol, local_port), port in wanted.items():
                self._put_static(protocol, local_port, port)

    def set_exhausted(self, exhausted: bool) -> None:
        """Say whether the pool cannot grow, so that packets which find it empty are refused for good."""
        with self._writing:
            config = self._config()
            flags = config.flags & ~abi.HostFlag.CANNOT_GET_PORTS | abi.HostFlag.CANNOT_GET_PORTS * exhausted
            if flags != config.flags:
                config.flags = flags
                self._put_config(config)

    @property
    def exhausted(self) -> bool:
        """What ``set_exhausted`` said last."""
        return bool(self._config().flags & abi.HostFlag.CANNOT_GET_PORTS)

    def forget(self, binding: Binding) -> bool:
        """Remove a binding before its time; False if it was gone already."""
        return self._remove(abi.PortKey(binding.local_port, _class_of(binding.protocol), 0), binding.port)

    def retire(self, ports: PortRange) -> bool:
        """Draw no more from these ports of the pool; False, and all stays as it is, while one has a binding.

        ``set_ports`` without them has to follow.
        """
        bits = _bitmaps([(ports, Protocol.ANY)])
        with self._writing:
            before = {index_key(index): self._maps["ports"].get(index_key(index)) or b"" for index in bits}
            after = {}
            for gone, (key, value) in zip(bits.values(), before.items(), strict=True):
                word = abi.PortWord.from_buffer_copy(value)
                after[key] = bytes(abi.PortWord(word.native, word.pool & ~gone, word.bound))
            self._maps["ports"].put_many(after)
            # A program that saw the old bits has long since made its binding.
            if any(found.port in ports for found in self.bindings(0)):
                self._maps["ports"].put_many(before)
                return False
            return True

    def free_ports(self) -> dict[abi.PortClass, int]:
        """Ports of the pool without a binding, by class, as of the last sweep or better."""
        total = self._config().pool_ports
        bound = [usage.bound for usage in self._usage()]
        return {abi.PortClass(each): max(0, total[each] - bound[each]) for each in range(abi.TRANSLATED_CLASSES)}

    def fileno(self) -> int:
        """Readable when there is a PoolEvent to drain."""
        return self._events.fileno()

    def drain_events(self) -> list[PoolEvent]:
        """What the programs told since the last call, oldest first."""
        events = (abi.PoolEvent.from_buffer_copy(record) for record in self._events.records())
        return [PoolEvent(abi.PortClass(event.port_class), event.free) for event in events]

    def bindings(self, now: float) -> list[Binding]:
        """Every binding, by protocol and local port; ``now`` is ``time.monotonic()``."""
        found = []
        for key, value in self._maps["bindings_out"].items():
            local, binding = abi.PortKey.from_buffer_copy(key), abi.Binding.from_buffer_copy(value)
            protocol = abi.PROTOCOL_OF[abi.PortClass(local.port_class)]
            idle = now - binding.seen_ns / _NANOSECONDS
            static = bool(binding.flags & abi.BindingFlag.STATIC)
            found.append(
                Binding(
                    protocol=protocol,
                    local_port=local.port,
                    port=binding.port,
                    age=now - binding.created_ns / _NANOSECONDS,
                    idle=idle,
                    expires_in=math.inf if static else binding.idle_seconds - idle,
                    state=_state_label(protocol, abi.TcpState(binding.state)),
                    static=static,
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
        with self._writing:
            self._settle_usage()
        return removed

    def _config(self) -> abi.HostConfig:
        return abi.HostConfig.from_buffer_copy(self._maps["config"].get(ZERO) or b"")

    def _put_config(self, config: abi.HostConfig) -> None:
        self._maps["config"].put(ZERO, bytes(config))

    def _put_list(self, name: str, numbers: Iterable[int]) -> None:
        self._maps[name].put_many({index_key(at): struct.pack("=I", number) for at, number in enumerate(numbers)})

    def _put_static(self, protocol: Protocol, local_port: int, port: int) -> None:
        port_class = _class_of(protocol)
        key = abi.PortKey(local_port, port_class, 0)
        local = bytes(key)
        former = self._maps["bindings_out"].get(local)
        known = abi.Binding.from_buffer_copy(former) if former else None
        if known is not None and known.flags & abi.BindingFlag.STATIC:
            return
        now = time.monotonic_ns()
        inward = abi.Inward(created_ns=now, port=local_port)
        self._maps["bindings_in"].put(bytes(abi.PortKey(port, port_class, 0)), bytes(inward))
        binding = abi.Binding(now, now, abi.IDLE_FOR_EVER, port, 0, abi.BindingFlag.STATIC)
        self._maps["bindings_out"].put(local, bytes(binding))
        self._forget_recent(key, port)
        if known is not None and known.port != port:
            self._maps["bindings_in"].delete(bytes(abi.PortKey(known.port, port_class, 0)))
            self._forget_recent(key, known.port)

    def _settle_usage(self) -> None:
        """Set right what the programs know of free ports; they err for a moment where CPUs race."""
        before = self._usage()
        bits: dict[int, int] = {}
        for key, _ in self._maps["bindings_in"].items():
            unique = abi.PortKey.from_buffer_copy(key)
            bits[unique.port >> 4] = bits.get(unique.port >> 4, 0) | _bit(unique.port, unique.port_class)
        counts = [0] * abi.TRANSLATED_CLASSES
        wrong = {}
        _, words = self._maps["ports"].dump()
        for index, (native, pool, bound) in enumerate(struct.iter_unpack("=3Q", words)):
            right = bits.get(index, 0)
            if bound != right:
                wrong[index_key(index)] = bytes(abi.PortWord(native, pool, right))
            for port_class in range(abi.TRANSLATED_CLASSES if right & pool else 0):
                counts[port_class] += (right & pool & _of_class(port_class)).bit_count()
        self._maps["ports"].put_many(wrong)
        for port_class, usage in enumerate(self._usage()):
            # Programs went on counting meanwhile. To count a binding twice is the safe side.
            usage.bound = counts[port_class] + usage.bound - before[port_class].bound
            self._maps["usage"].put(index_key(port_class), bytes(usage))

    def _usage(self) -> list[abi.PoolUsage]:
        values = (self._maps["usage"].get(index_key(each)) or b"" for each in range(abi.TRANSLATED_CLASSES))
        return [abi.PoolUsage.from_buffer_copy(value) for value in values]

    def _is_bound(self, local: bytes, port: int) -> bool:
        value = self._maps["bindings_out"].get(local)
        return value is not None and abi.Binding.from_buffer_copy(value).port == port

    def _remove(self, local: abi.PortKey, port: int) -> bool:
        # Who deletes from bindings_out may delete from bindings_in: a program may have been quicker.
        removed = self._maps["bindings_out"].delete(bytes(local))
        if removed:
            self._maps["bindings_in"].delete(bytes(abi.PortKey(port, local.port_class, 0)))
            self._forget_recent(local, port)
        return removed

    def _forget_recent(self, local: abi.PortKey, port: int) -> None:
        """Have the programs ask the tables of bindings again, also those that have just asked."""
        for name, each in (("recent_out", local.port), ("recent_in", port)):
            self._maps[name].put(index_key(abi.recent_index(local.port_class, each)), bytes(8))

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


def _of_class(port_class: int) -> int:
    """The bits of one class in a word."""
    return 0x1111111111111111 << port_class


def _class_of(protocol: Protocol) -> abi.PortClass:
    (port_class,) = abi.CLASSES_OF[protocol]
    return port_class


def _whole_ports(*bitmaps: Mapping[int, int]) -> list[int]:
    """Ports that are ours in every class."""
    found = []
    for bits in bitmaps:
        for index, word in bits.items():
            found += [index * 16 + at for at in range(16) if word >> at * abi.CLASSES & 15 == 15]
    return sorted(found)


def _state_label(protocol: Protocol, state: abi.TcpState) -> str:
    if protocol is not Protocol.TCP:
        return "active"
    both = abi.TcpState.FIN_SENT | abi.TcpState.FIN_RECEIVED
    if state & abi.TcpState.SHARED:
        return "established"
    if state & abi.TcpState.RESET or state & both == both:
        return "closing"
    return "established" if state & abi.TcpState.ESTABLISHED else "opening"
