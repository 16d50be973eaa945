"""Keys and values in etcd, below the configured prefix. Values are JSON, so that ``etcdctl get`` shows what is there.

=============================  ==========================================================================
``table/fence``                who changed leases or holds last: whoever wants to must know its revision
``table/epoch``                when this store was first made, seconds since 1970
``table/pool``                 the addresses and ports that servers lease: what routers have to know
``table/leases/ID``            a lease
``table/holds/ADDR/P-P/PROTO`` a hold
``history/UNTIL-ID-SINCE``     a tenure that has ended, by its end; those that last are in ``table/leases/``
``live/routers/LAN-ADDRESS``   a router, and how far it has followed; goes away with it
``live/offences/…``            a host's use of ports that are not its own, until a server takes care of it
``secret/keys/ID``             a key of a host
``secret/cookie``              what cookies are made with
=============================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address

import msgspec

from dnat.leases.records import HoldKey, HoldRecord, LeaseRecord
from dnat.store.base import PublishedPool
from dnat.store.history import Tenure
from dnat.types import PortRange, Protocol, Purpose, parse_address


class _Lease(msgspec.Struct, frozen=True):
    address: str
    first: int
    last: int
    protocol: int
    purpose: int
    host_id: str
    host: str
    transaction: int
    granted_at: float
    expires_at: float
    since: float
    """When the holder came to its present LAN address: where its tenure in the log begins."""


class _Hold(msgspec.Struct, frozen=True):
    purpose: int
    host_id: str
    until: float


class _Tenure(msgspec.Struct, frozen=True):
    lease: str
    address: str
    first: int
    last: int
    protocol: int
    purpose: int
    host_id: str
    host: str
    since: float
    until: float


class _Pool(msgspec.Struct, frozen=True):
    addresses: list[str]
    ports: list[str]


class _Router(msgspec.Struct, frozen=True):
    revision: int


class _Offence(msgspec.Struct, frozen=True):
    host: str
    address: str
    port: int
    protocol: int


_encoder = msgspec.json.Encoder()
_lease_decoder = msgspec.json.Decoder(_Lease)
_hold_decoder = msgspec.json.Decoder(_Hold)


def lease_name(lease_id: int) -> str:
    return f"{lease_id:016x}"


def lease_value(record: LeaseRecord, since: float) -> bytes:
    return _encoder.encode(
        _Lease(
            str(record.address),
            record.ports.first,
            record.ports.last,
            int(record.protocol),
            int(record.purpose),
            record.host_id.hex(),
            str(record.host),
            record.transaction,
            record.granted_at,
            record.expires_at,
            since,
        )
    )


def lease(name: str, value: bytes) -> tuple[LeaseRecord, float]:
    """The lease of a key's last part and value, and since when. Raises ValueError or msgspec.MsgspecError."""
    row = _lease_decoder.decode(value)
    record = LeaseRecord(
        int(name, 16),
        parse_address(row.address),
        PortRange(row.first, row.last),
        Protocol(row.protocol),
        Purpose(row.purpose),
        bytes.fromhex(row.host_id),
        parse_address(row.host),
        row.transaction,
        row.granted_at,
        row.expires_at,
    )
    return record, row.since


def hold_name(key: HoldKey) -> str:
    address, ports, protocol = key
    return f"{address}/{ports.first}-{ports.last}/{protocol.label}"


def hold_key(name: str) -> HoldKey:
    """Raises ValueError or KeyError."""
    address, ports, protocol = name.split("/")
    return IPv4Address(address), PortRange.parse(ports), Protocol[protocol.upper()]


def hold_value(record: HoldRecord) -> bytes:
    return _encoder.encode(_Hold(int(record.purpose), record.host_id.hex(), record.until))


def hold(name: str, value: bytes) -> HoldRecord:
    """Raises ValueError, KeyError or msgspec.MsgspecError."""
    row = _hold_decoder.decode(value)
    return HoldRecord(*hold_key(name), Purpose(row.purpose), bytes.fromhex(row.host_id), row.until)


def tenure_name(until: float, lease_id: int, since: float) -> str:
    return f"{history_from(until)}-{lease_id:016x}-{int(since * 1e6):017d}"


def history_from(time: float) -> str:
    """The names of all tenures that end at or after a time (seconds) are not below this."""
    return f"{int(min(max(time, 0.0), 9e10) * 1e6):017d}"


def tenure_value(record: LeaseRecord, since: float, until: float) -> bytes:
    return _encoder.encode(
        _Tenure(
            lease_name(record.id),
            str(record.address),
            record.ports.first,
            record.ports.last,
            int(record.protocol),
            int(record.purpose),
            record.host_id.hex(),
            str(record.host),
            since,
            until,
        )
    )


def tenure(value: bytes) -> Tenure:
    """Raises ValueError or msgspec.MsgspecError."""
    row = msgspec.json.decode(value, type=_Tenure)
    return Tenure(
        int(row.lease, 16),
        parse_address(row.address),
        PortRange(row.first, row.last),
        Protocol(row.protocol),
        Purpose(row.purpose),
        bytes.fromhex(row.host_id),
        parse_address(row.host),
        row.since,
        row.until,
    )


def standing(record: LeaseRecord, since: float) -> Tenure:
    """The tenure of a lease that lasts."""
    return Tenure(
        record.id,
        record.address,
        record.ports,
        record.protocol,
        record.purpose,
        record.host_id,
        record.host,
        since,
        None,
    )


def pool_value(pool: PublishedPool) -> bytes:
    return _encoder.encode(_Pool([str(each) for each in pool.addresses], [str(each) for each in pool.ports]))


def pool(value: bytes) -> PublishedPool:
    """Raises ValueError or msgspec.MsgspecError."""
    row = msgspec.json.decode(value, type=_Pool)
    return PublishedPool(tuple(map(IPv4Address, row.addresses)), tuple(map(PortRange.parse, row.ports)))


def router_value(revision: int) -> bytes:
    return _encoder.encode(_Router(revision))


def router(value: bytes) -> int:
    """How far a router has followed. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(value, type=_Router).revision


def offence_value(host: IPv4Address, address: IPv4Address, port: int, protocol: Protocol) -> bytes:
    return _encoder.encode(_Offence(str(host), str(address), port, int(protocol)))


def offence(value: bytes) -> tuple[IPv4Address, IPv4Address, int, Protocol]:
    """Raises ValueError or msgspec.MsgspecError."""
    row = msgspec.json.decode(value, type=_Offence)
    return IPv4Address(row.host), IPv4Address(row.address), row.port, Protocol(row.protocol)


class _Snapshot(msgspec.Struct, frozen=True):
    epoch_start: float
    pool: msgspec.Raw
    leases: dict[str, msgspec.Raw]


def snapshot_value(epoch_start: float, pool: PublishedPool, leases: Iterable[tuple[LeaseRecord, float]]) -> bytes:
    """What a router keeps in a file: `snapshot` reads it."""
    rows = {lease_name(record.id): msgspec.Raw(lease_value(record, since)) for record, since in leases}
    return _encoder.encode(_Snapshot(epoch_start, msgspec.Raw(pool_value(pool)), rows))


def snapshot(value: bytes) -> tuple[float, PublishedPool, Sequence[tuple[LeaseRecord, float]]]:
    """Epoch, pool and leases. Raises ValueError or msgspec.MsgspecError."""
    file = msgspec.json.decode(value, type=_Snapshot)
    return file.epoch_start, pool(bytes(file.pool)), [lease(name, bytes(raw)) for name, raw in file.leases.items()]
