"""IPv4 routes as the kernel stores them, so that a replaced route comes back exactly.

A route is read, stored in the journal and written as the body of its RTM_NEWROUTE message (rtnetlink(7)), in
the way of ``ip route save``: attributes that this code knows nothing about survive.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Any

from dnat.errors import PlatformError
from dnat.system import rtnetlink
from dnat.system.journal import Entry, Journal

KIND = "route"
LOCAL_KIND = "local route"

PROTOCOL = 157
"""rtm_protocol of our routes: a number that /etc/iproute2/rt_protos gives to nobody."""

MAIN_TABLE, LOCAL_TABLE = 254, 255

_ANYWHERE = IPv4Network("0.0.0.0/0")
_HEADER = struct.Struct("=BBBBBBBBI")
_AF_INET = 2
_TYPE_UNICAST, _TYPE_LOCAL, _TYPE_BLACKHOLE = 1, 2, 6
_SCOPE_UNIVERSE = 0
_FLAG_ONLINK = 4
_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _MULTIPATH = 1, 4, 5, 6, 7, 8, 9
_TABLE, _VIA, _ENCAP_TYPE, _ENCAP, _NEXTHOP_ID = 15, 18, 21, 22, 30
_METRIC_MTU = 2
_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 24, 25, 26
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENODEV)
"""What the kernel answers to a route whose interface is not there, or down, or not on the gateway's network."""
_NLM_REPLACE, _NLM_CREATE = 0x100, 0x400


@dataclass(frozen=True, slots=True)
class Route:
    """One IPv4 route: struct rtmsg and its attributes in the kernel's own encoding."""

    destination_length: int
    tos: int
    protocol: int
    """rtm_protocol: who made it."""
    scope: int
    type: int
    flags: int
    attributes: tuple[tuple[int, bytes], ...]
    """(RTA_*, value) in the kernel's order."""

    @property
    def destination(self) -> IPv4Network:
        return IPv4Network((self._get(_DST) or bytes(4), self.destination_length))

    @property
    def table(self) -> int:
        return self._number(_TABLE) or 0

    @property
    def metric(self) -> int:
        return self._number(_PRIORITY) or 0

    @property
    def gateway(self) -> IPv4Address | None:
        """Of a route over several gateways, the first."""
        own = self._get(_GATEWAY) or next((hop.get(_GATEWAY) for hop in self._hops()), None)
        return IPv4Address(own) if own else None

    @property
    def interface(self) -> int | None:
        """Index; of a route over several interfaces, the first."""
        return self._number(_OIF) or next((hop[_OIF][0] for hop in self._hops()), None)

    @property
    def source(self) -> IPv4Address | None:
        own = self._get(_PREFSRC)
        return IPv4Address(own) if own else None

    @property
    def mtu(self) -> int | None:
        value = dict(rtnetlink.unpack_attributes(self._get(_METRICS) or b"")).get(_METRIC_MTU)
        return int.from_bytes(value, sys.byteorder) if value else None

    def with_mtu(self, mtu: int) -> Route:
        """The same route with another MTU metric."""
        metrics = dict(rtnetlink.unpack_attributes(self._get(_METRICS) or b""))
        metrics[_METRIC_MTU] = struct.pack("=I", mtu)
        others = tuple((kind, value) for kind, value in self.attributes if kind != _METRICS)
        return replace(self, attributes=(*others, (_METRICS, rtnetlink.pack_attributes(metrics.items()))))

    def restorable(self) -> Route:
        """Without the state flags and duplicates that a dump shows and the kernel refuses in a new route."""
        dropped: tuple[int, ...] = ()
        if self._get(_NEXTHOP_ID):
            dropped = (_OIF, _GATEWAY, _VIA, _MULTIPATH, _ENCAP, _ENCAP_TYPE)
        attributes = tuple(
            (kind, _without_hop_state(value) if kind == _MULTIPATH else value)
            for kind, value in self.attributes
            if kind not in dropped
        )
        flags = 0 if dropped else self.flags & _FLAG_ONLINK
        return replace(self, flags=flags, attributes=attributes)

    def pack(self) -> bytes:
        """The body of a netlink message."""
        table = self.table if self.table < 256 else 0
        header = _HEADER.pack(
            _AF_INET,
            self.destination_length,
            0,
            self.tos,
            table,
            self.protocol,
            self.scope,
            self.type,
            self.flags,
        )
        return header + rtnetlink.pack_attributes(self.attributes)

    @classmethod
    def unpack(cls, body: bytes) -> Route:
        _, length, _, tos, _, protocol, scope, kind, flags = _HEADER.unpack_from(body)
        return cls(length, tos, protocol, scope, kind, flags, tuple(rtnetlink.unpack_attributes(body[_HEADER.size :])))

    def _get(self, kind: int) -> bytes | None:
        return next((value for k, value in self.attributes if k == kind), None)

    def _number(self, kind: int) -> int | None:
        value = self._get(kind)
        return struct.unpack("=I", value)[0] if value else None

    def _hops(self) -> Iterator[dict[int, Any]]:
        data = self._get(_MULTIPATH) or b""
        for offset, length in _hop_extents(data):
            index = struct.unpack_from("=I", data, offset + 4)
            yield {_OIF: index, **dict(rtnetlink.unpack_attributes(data[offset + 8 : offset + length]))}


def default(gateway: IPv4Address, interface: int, source: IPv4Address, like: Route | None) -> Route:
    """A default route of ours through ``gateway``, in front of all others.

    ``like`` is the route that led there so far: whether its gateway is on the link, and its metrics, are
    kept.
    """
    attributes = [
        (_TABLE, struct.pack("=I", MAIN_TABLE)),
        (_PREFSRC, source.packed),
        (_GATEWAY, gateway.packed),
        (_OIF, struct.pack("=I", interface)),
    ]
    flags = 0
    if like and like.gateway == gateway and like.interface == interface:
        flags = like.flags & _FLAG_ONLINK
        attributes += [(kind, value) for kind, value in like.attributes if kind == _METRICS]
    return Route(0, 0, PROTOCOL, _SCOPE_UNIVERSE, _TYPE_UNICAST, flags, tuple(attributes))


def blackhole(address: IPv4Address) -> Route:
    """A route of ours that swallows what is sent to ``address``."""
    attributes = ((_TABLE, struct.pack("=I", MAIN_TABLE)), (_DST, address.packed))
    return Route(32, 0, PROTOCOL, _SCOPE_UNIVERSE, _TYPE_BLACKHOLE, 0, attributes)


def dump(table: int) -> list[Route]:
    """All IPv4 routes of one table, in the order in which the kernel tries them within one prefix.

    Raises NetlinkError, as everything here does that asks or tells the kernel.
    """
    wanted = _HEADER.pack(_AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
    wanted += rtnetlink.pack_attributes([(_TABLE, struct.pack("=I", table))])
    with rtnetlink.expect(errno.ENOENT):  # a table in which there was no route yet
        return [Route.unpack(body) for body in rtnetlink.dump(_GET_ROUTE, wanted)]
    return []


def defaults() -> list[Route]:
    """The default routes of the main table, best first."""
    found = [r for r in dump(MAIN_TABLE) if r.destination == _ANYWHERE and r.type == _TYPE_UNICAST and r.tos == 0]
    return sorted(found, key=lambda route: route.metric)


def beside_default(interface: int) -> list[IPv4Network]:
    """What is reached by this interface on other ways than the default route: networks of which none holds another."""
    found = [r for r in dump(MAIN_TABLE) if r.type == _TYPE_UNICAST and r.interface == interface]
    return list(collapse_addresses(r.destination for r in found if r.destination != _ANYWHERE))


def ensure_front(journal: Journal, wanted: Route) -> list[str]:
    """Make ``wanted`` (of ours, metric 0) the route that the kernel takes for its destination.

    A route of metric 0 that is in the way is replaced and journalled; others stay behind ours. Returns what
    was changed. Raises PlatformError while the gateway cannot be reached.
    """
    from dnat.system.netlink import NetlinkError

    current = _front(wanted.destination)
    if current and _same(current, wanted):
        return []
    old = current if current and current.protocol != PROTOCOL else None
    # Whatever somebody has put in place of ours meanwhile is newer than what was there first.
    write_down = journal.renew if old else journal.add
    write_down(
        KIND,
        _subject(wanted),
        destination=str(wanted.destination),
        old=old.restorable().pack().hex() if old else None,
    )
    try:
        rtnetlink.request(_NEW_ROUTE, wanted.pack(), _NLM_REPLACE | _NLM_CREATE)
    except NetlinkError as error:
        if error.code not in _NO_WAY:
            raise
        raise PlatformError(
            f"the {_subject(wanted)} has to wait until its gateway {wanted.gateway} is on a network of this machine"
        ) from None
    verb = "replaced" if current else "added"
    return [f"{verb} {_subject(wanted)}"]


def ensure_local_mtu(journal: Journal, address: IPv4Address, loopback: int, mtu: int) -> list[str]:
    """Give the local route of ``address`` on the loopback interface an MTU.

    Everything else about the route stays the kernel's, so that it still goes away with the address.
    """
    route = _local(address, loopback)
    if route is None or route.mtu == mtu:
        return []
    journal.add(LOCAL_KIND, f"local route of {address}", address=str(address), old=route.restorable().pack().hex())
    rtnetlink.request(_NEW_ROUTE, route.restorable().with_mtu(mtu).pack(), _NLM_REPLACE | _NLM_CREATE)
    return [f"local route of {address}: mtu {route.mtu or 'unset'} → {mtu}"]


def local_owners(address: IPv4Address) -> list[int]:
    """Indexes of the interfaces that have ``address``."""
    routes = dump(LOCAL_TABLE)
    return [
        r.interface for r in routes if r.type == _TYPE_LOCAL and r.destination == IPv4Network(address) and r.interface
    ]


def undo(entry: Entry) -> None:
    """Handler of entries about routes of ours: they go, and what they replaced comes back.

    A route that somebody else has put there since is newer than what the journal knows, and stays. One whose
    interface is gone or down meanwhile would have gone with it.
    """
    from dnat.system.netlink import NetlinkError

    old = _stored(entry)
    with rtnetlink.refusals("put the old route back"):
        current = _front(IPv4Network(entry.facts["destination"]))
        if old is not None and (current is None or current.protocol == PROTOCOL):
            try:
                rtnetlink.request(_NEW_ROUTE, old.pack(), _NLM_REPLACE | _NLM_CREATE)
                return
            except NetlinkError as error:
                if error.code not in _NO_WAY:
                    raise
        if current and current.protocol == PROTOCOL:
            with rtnetlink.expect(errno.ESRCH):
                rtnetlink.request(_DELETE_ROUTE, current.restorable().pack(), 0)


def undo_local(entry: Entry) -> None:
    """Handler of entries about the local route of an address on the loopback interface."""
    old = _stored(entry)
    assert old is not None and old.interface is not None
    with rtnetlink.refusals("put the old local route back"):
        current = _local(IPv4Address(entry.facts["address"]), old.interface)
        if current and current.restorable() != old:
            rtnetlink.request(_NEW_ROUTE, old.pack(), _NLM_REPLACE | _NLM_CREATE)


def _stored(entry: Entry) -> Route | None:
    return Route.unpack(bytes.fromhex(entry.facts["old"])) if entry.facts["old"] else None


def _subject(route: Route) -> str:
    return "default route" if route.destination == _ANYWHERE else f"route to {route.destination}"


def _front(destination: IPv4Network) -> Route | None:
    """The route of metric 0 that NLM_F_REPLACE would replace: the first one of its prefix."""
    found = (r for r in dump(MAIN_TABLE) if r.destination == destination and r.metric == 0 and r.tos == 0)
    return next(found, None)


def _local(address: IPv4Address, loopback: int) -> Route | None:
    for route in dump(LOCAL_TABLE):
        if route.type == _TYPE_LOCAL and route.destination == IPv4Network(address) and route.interface == loopback:
            return route
    return None


def _same(one: Route, other: Route) -> bool:
    one, other = one.restorable(), other.restorable()
    return replace(one, attributes=()) == replace(other, attributes=()) and dict(one.attributes) == dict(
        other.attributes
    )


def _hop_extents(data: bytes) -> Iterator[tuple[int, int]]:
    """Offset and length of each struct rtnexthop of an RTA_MULTIPATH attribute."""
    offset = 0
    while offset + 8 <= len(data):
        (length,) = struct.unpack_from("=H", data, offset)
        if length < 8:
            return
        yield offset, length
        offset += (length + 3) & ~3


def _without_hop_state(data: bytes) -> bytes:
    changed = bytearray(data)
    for offset, _ in _hop_extents(data):
        changed[offset + 2] &= _FLAG_ONLINK
    return bytes(changed)
