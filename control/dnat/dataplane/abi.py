"""The mirror of ``ebpf/include/dnat/abi.h``: numbers and structures.

``assertions`` turns all of it into C assertions that every compilation checks, so the two cannot drift apart.
"""

from __future__ import annotations

import ctypes
import enum
import struct
from collections.abc import Iterator
from typing import Literal

from dnat.types import Protocol

Role = Literal["host", "router"]

ABI = 4
CLASSES = 4
TRANSLATED_CLASSES = 3
COUNTERS = 64
POOL_WORDS_MAX = 256
IDS_MAX = 4096
PEERS_MAX = 16384
POOL_EVENTS_SIZE = 4096
PORT_WORDS = 4096
BINDINGS_MAX = 8192
RECENT_MAX = 4096
UDP_SECONDS = 300
TCP_ESTABLISHED_SECONDS = 7440
TCP_TRANSITORY_SECONDS = 240
ICMP_SECONDS = 60
IDLE_FOR_EVER = 0xFFFFFFFF
IDLE_TIMERS = 4
EXTERNALS_MAX = 256
ADDRESSES_MAX = 1024
NEAR_ADDRESSES = 4
HOSTS_MAX = 8192
OFFENCES_SIZE = 65536
OFFENCES_PER_SECOND = 20
FRAGMENTS_MAX = 4096
FRAGMENT_SECONDS = 2
LINK_LAN = 0
LINK_WAN = 1
LINKS = 2
WAYS_MAX = 1024
WAY_TICKS = 100
STAGES = 4
ERRORS_PER_SECOND = 1000
ERROR_KINDS = 2
WAITING_BUCKETS = 64
WAITING_SLOTS = 16
WAITING_MAX = WAITING_BUCKETS * WAITING_SLOTS
WAITING_OCTETS = 1536
WAITING_SECONDS = 1

_CONSTANTS = {"DNAT_ABI": ABI} | {
    name: value
    for name, value in globals().copy().items()
    if name.isupper() and isinstance(value, int) and name != "ABI"
}


class PortClass(enum.IntEnum):
    """Protocols that share one bit for each port."""

    TCP = 0
    UDP = 1
    ICMP = 2
    OTHER = 3


CLASSES_OF = {
    Protocol.ANY: tuple(PortClass),
    Protocol.TCP: (PortClass.TCP,),
    Protocol.UDP: (PortClass.UDP,),
    Protocol.ICMP: (PortClass.ICMP,),
}
"""What a lease for a protocol covers."""

PROTOCOL_OF = {PortClass.TCP: Protocol.TCP, PortClass.UDP: Protocol.UDP, PortClass.ICMP: Protocol.ICMP}


class Counter(enum.IntEnum):
    """Index into the map ``counters``; numbers and names are stable."""

    DROP_MALFORMED = 1
    DROP_POOL_EXHAUSTED = 2
    DROP_TABLE_FULL = 3
    DROP_NOT_TRANSLATABLE = 4
    DROP_ERROR_UNBOUND = 5
    DROP_REWRITE_FAILED = 6
    DROP_FRAGMENT_UNKNOWN = 7
    DROP_NO_OWNER = 8
    DROP_NOT_OWNER = 9
    DROP_TTL_EXPIRED = 10
    DROP_FRAGMENT_NO_ROOM = 11
    DROP_FRAGMENT_OVERLAP = 12
    DROP_TOO_BIG = 13
    DROP_SPOOFED = 14
    DROP_ERROR_UNMAPPED = 15
    DROP_STAGE_MISSING = 16
    DROP_UNBOUND = 20
    DROP_FILTERED = 21
    DROP_QUOTE_DAMAGED = 22
    HOST_OUT_NATIVE = 32
    HOST_OUT_TRANSLATED = 33
    HOST_OUT_FRAGMENT = 34
    HOST_IN_NATIVE = 35
    HOST_IN_TRANSLATED = 36
    HOST_HAIRPIN = 37
    HOST_LOCAL = 38
    HOST_BINDING_CREATED = 39
    HOST_BINDING_TAKEN_OVER = 40
    HOST_REFUSED = 41
    HOST_ID_REPLACED = 42
    HOST_POOL_LOW = 43
    ROUTER_IN = 48
    ROUTER_OUT = 49
    ROUTER_HAIRPIN = 50
    ROUTER_TO_SELF = 51
    ROUTER_FROM_SELF = 52
    ROUTER_MAC_UNKNOWN = 53
    ROUTER_OFFENCE_UNREPORTED = 54
    ROUTER_FRAGMENT_HELD = 55
    ROUTER_FRAGMENT_RELEASED = 56
    ROUTER_CUT = 57
    ROUTER_TIME_EXCEEDED = 58
    ROUTER_FRAGMENTATION_NEEDED = 59
    ROUTER_ERROR_UNSENT = 60

    @property
    def label(self) -> str:
        """Name in tables and JSON."""
        return self.name.lower()


_ONE_ROLE = {
    "host": {
        Counter.DROP_POOL_EXHAUSTED,
        Counter.DROP_TABLE_FULL,
        Counter.DROP_NOT_TRANSLATABLE,
        Counter.DROP_ERROR_UNBOUND,
        Counter.DROP_UNBOUND,
        Counter.DROP_FILTERED,
        Counter.DROP_QUOTE_DAMAGED,
    },
    "router": {
        Counter.DROP_NO_OWNER,
        Counter.DROP_NOT_OWNER,
        Counter.DROP_TTL_EXPIRED,
        Counter.DROP_FRAGMENT_NO_ROOM,
        Counter.DROP_TOO_BIG,
        Counter.DROP_SPOOFED,
        Counter.DROP_ERROR_UNMAPPED,
        Counter.DROP_STAGE_MISSING,
    },
}


def counters_of(role: Role) -> list[Counter]:
    """The counters that programs of a role can raise, by number."""
    other = "router" if role == "host" else "host"
    return [
        counter
        for counter in Counter
        if counter not in _ONE_ROLE[other] and not counter.name.startswith(f"{other.upper()}_")
    ]


class TcpState(enum.IntFlag):
    """Summary of the TCP connections of one binding."""

    ESTABLISHED = 1
    FIN_SENT = 2
    FIN_RECEIVED = 4
    RESET = 8
    SHARED = 16


class IdleTimer(enum.IntEnum):
    """Index into the host's timers."""

    UDP = 0
    TCP_ESTABLISHED = 1
    TCP_TRANSITORY = 2
    ICMP = 3


class HostFlag(enum.IntFlag):
    """What a host's programs do or leave."""

    FILTERS_BY_ADDRESS = 1
    INBOUND_REFRESHES = 2
    ANSWERS_REFUSALS = 4
    CANNOT_GET_PORTS = 8


class BindingFlag(enum.IntFlag):
    """What is special about a binding."""

    STATIC = 1


class AddressFlag(enum.IntFlag):
    """What an address is to a router."""

    EXTERNAL = 1
    LOCAL = 2


class Stage(enum.IntEnum):
    """Index into the map ``stages``."""

    HOLD = 0
    RELEASE = 1
    ANSWER = 2
    CUT = 3


class FragmentState(enum.IntEnum):
    """What is known about a datagram in fragments."""

    KNOWN = 0
    AWAITED = 1
    CONFLICT = 2


class ErrorKind(enum.IntEnum):
    """ICMP errors with a budget of their own."""

    TIME_EXCEEDED = 0
    FRAGMENTATION_NEEDED = 1


def address_bit(packed: bytes) -> int:
    """ADDRESS_BIT of an address in network order."""
    (word,) = struct.unpack("=I", packed)
    return int(word * 2654435761 % 2**32) >> 26


def recent_index(port_class: int, port: int) -> int:
    """RECENT_INDEX: where the translation of a port is noted."""
    return (port ^ port_class * (RECENT_MAX // CLASSES)) % RECENT_MAX


BigEndian4 = ctypes.c_uint8 * 4
"""An IPv4 address in network order."""
Mac = ctypes.c_uint8 * 6


class HostConfig(ctypes.Structure):
    _fields_ = (
        ("external", BigEndian4),
        ("router", BigEndian4),
        ("lan_ifindex", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pool_words", ctypes.c_uint32),
        ("pool_ports", ctypes.c_uint32 * TRANSLATED_CLASSES),
        ("low_water", ctypes.c_uint32),
        ("id_count", ctypes.c_uint32),
        ("idle_seconds", ctypes.c_uint32 * IDLE_TIMERS),
    )


class PortWord(ctypes.Structure):
    _fields_ = (("native", ctypes.c_uint64), ("pool", ctypes.c_uint64), ("bound", ctypes.c_uint64))


class PortKey(ctypes.Structure):
    _fields_ = (("port", ctypes.c_uint16), ("port_class", ctypes.c_uint8), ("zero", ctypes.c_uint8))


class Binding(ctypes.Structure):
    _fields_ = (
        ("created_ns", ctypes.c_uint64),
        ("seen_ns", ctypes.c_uint64),
        ("idle_seconds", ctypes.c_uint32),
        ("port", ctypes.c_uint16),
        ("state", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("seen_tick", ctypes.c_uint32),
        ("peer", ctypes.c_uint32),
    )


class Inward(ctypes.Structure):
    _fields_ = (("created_ns", ctypes.c_uint64), ("port", ctypes.c_uint16), ("zero", ctypes.c_uint8 * 6))


class PoolUsage(ctypes.Structure):
    _fields_ = (("bound", ctypes.c_uint32), ("zero", ctypes.c_uint32), ("told_ns", ctypes.c_uint64))


class PoolEvent(ctypes.Structure):
    _fields_ = (("port_class", ctypes.c_uint32), ("free", ctypes.c_uint32))


class PeerKey(ctypes.Structure):
    _fields_ = (
        ("address", BigEndian4),
        ("port", ctypes.c_uint16),
        ("port_class", ctypes.c_uint8),
        ("zero", ctypes.c_uint8),
    )


class Address(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint16), ("slot", ctypes.c_uint16))


class NearAddress(ctypes.Structure):
    _fields_ = (("ipv4", BigEndian4), ("is", Address))


class RouterConfig(ctypes.Structure):
    _fields_ = (
        ("lan_ifindex", ctypes.c_uint32),
        ("wan_ifindex", ctypes.c_uint32),
        ("lan_network", BigEndian4),
        ("lan_mask", BigEndian4),
        ("address_bits", ctypes.c_uint64),
        ("near", NearAddress * NEAR_ADDRESSES),
        ("wan_mtu", ctypes.c_uint32),
        ("lan_address", BigEndian4),
        ("wan_address", BigEndian4),
        ("lan_mac", Mac),
        ("zero", ctypes.c_uint8 * 6),
    )


class PortOwner(ctypes.Structure):
    _fields_ = (("host", ctypes.c_uint16 * CLASSES),)


class Host(ctypes.Structure):
    _fields_ = (
        ("address", BigEndian4),
        ("ifindex", ctypes.c_uint32),
        ("mac", Mac),
        ("mtu", ctypes.c_uint16),
        ("asked", ctypes.c_uint64),
    )


class Link(ctypes.Structure):
    _fields_ = (
        ("ifindex", ctypes.c_uint32),
        ("mac", Mac),
        ("zero", ctypes.c_uint8 * 2),
    )


class Way(ctypes.Structure):
    _fields_ = (
        ("source", BigEndian4),
        ("destination", BigEndian4),
        ("expires", ctypes.c_uint64),
        ("to", Mac),
        ("from", Mac),
        ("tos", ctypes.c_uint8),
        ("passed", ctypes.c_uint8),
        ("zero", ctypes.c_uint8 * 2),
    )


class Offence(ctypes.Structure):
    _fields_ = (
        ("external", BigEndian4),
        ("port", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
        ("zero", ctypes.c_uint8),
        ("mac", Mac),
        ("zero2", ctypes.c_uint8 * 2),
    )


class OffenceBudget(ctypes.Structure):
    _fields_ = (("second", ctypes.c_uint64), ("used", ctypes.c_uint32), ("zero", ctypes.c_uint32))


class FragmentKey(ctypes.Structure):
    _fields_ = (
        ("source", BigEndian4),
        ("destination", BigEndian4),
        ("id", ctypes.c_uint8 * 2),
        ("protocol", ctypes.c_uint8),
        ("zero", ctypes.c_uint8),
        ("mac", Mac),
        ("zero2", ctypes.c_uint8 * 2),
    )


class Fragment(ctypes.Structure):
    _fields_ = (
        ("expires_ns", ctypes.c_uint64),
        ("seen", ctypes.c_uint32),
        ("total", ctypes.c_uint32),
        ("first", ctypes.c_uint32),
        ("target", ctypes.c_uint16),
        ("state", ctypes.c_uint8),
        ("zero", ctypes.c_uint8),
    )


class Held(ctypes.Structure):
    _fields_ = (
        ("expires_ns", ctypes.c_uint64),
        ("key", FragmentKey),
        ("length", ctypes.c_uint32),
        ("frame", ctypes.c_uint8 * WAITING_OCTETS),
    )


_STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "host_config": HostConfig,
    "port_word": PortWord,
    "port_key": PortKey,
    "binding": Binding,
    "inward": Inward,
    "pool_usage": PoolUsage,
    "pool_event": PoolEvent,
    "peer_key": PeerKey,
    "router_config": RouterConfig,
    "owner": PortOwner,
    "address": Address,
    "near_address": NearAddress,
    "host": Host,
    "link": Link,
    "way": Way,
    "offence": Offence,
    "offence_budget": OffenceBudget,
    "fragment_key": FragmentKey,
    "fragment": Fragment,
    "held": Held,
}


def assertions() -> str:
    """C that does not compile unless ``abi.h`` and this module agree."""
    return "\n".join(
        f'_Static_assert({condition}, "dnat/dataplane/abi.py differs: {condition}");' for condition in _conditions()
    )


_ENUMERATIONS: tuple[tuple[str, type[enum.IntEnum] | type[enum.IntFlag]], ...] = (
    ("CLASS", PortClass),
    ("TCP", TcpState),
    ("IDLE", IdleTimer),
    ("HOST", HostFlag),
    ("BINDING", BindingFlag),
    ("ADDRESS", AddressFlag),
    ("STAGE", Stage),
    ("FRAGMENT", FragmentState),
    ("ERROR", ErrorKind),
)


def _conditions() -> Iterator[str]:
    # PORT_WORDS belongs to one role's header; the shape of its map is asserted there.
    yield from (f"{name} == {value}" for name, value in _CONSTANTS.items() if name != "PORT_WORDS")
    for prefix, members in _ENUMERATIONS:
        yield from (f"{prefix}_{member.name} == {member.value}" for member in members)
    yield from (f"{counter.name} == {counter.value}" for counter in Counter)
    yield f"ADDRESS_BIT(0x01020304) == {address_bit(struct.pack('=I', 0x01020304))}"
    yield f"RECENT_INDEX(CLASS_UDP, 50607) == {recent_index(PortClass.UDP, 50607)}"
    for name, structure in _STRUCTURES.items():
        yield f"sizeof(struct {name}) == {ctypes.sizeof(structure)}"
        for field in structure._fields_:
            yield f"__builtin_offsetof(struct {name}, {field[0]}) == {getattr(structure, field[0]).offset}"
