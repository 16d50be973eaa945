"""The router's half of the data plane: who owns which port, what the hosts' link addresses are, who breaks
the rules.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import os
import struct
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Self

from dnat.dataplane import abi, neighbours
from dnat.dataplane.bpf import Map, object_get, possible_cpus
from dnat.dataplane.loader import create_inner_owners, maps_directory
from dnat.dataplane.maps import ZERO, Plane, index_key, octets
from dnat.dataplane.ring import RingBuffer
from dnat.errors import PlatformError, UsageError
from dnat.types import Owner, PortRange, Protocol

_NOBODY = abi.PortOwner()
_UNSPECIFIED = IPv4Address(0)
_MTU_MAX = 65535
_LEASED_CLASSES = (abi.PortClass.TCP, abi.PortClass.UDP, abi.PortClass.ICMP)


def _ones(classes: Iterable[int]) -> int:
    """A ``struct owner`` as a number, with 1 for each of the classes."""
    owner = abi.PortOwner()
    for port_class in classes:
        owner.host[port_class] = 1
    return int.from_bytes(bytes(owner), sys.byteorder)


_ONES = {protocol: _ones(classes) for protocol, classes in abi.CLASSES_OF.items()}


@dataclass(frozen=True, slots=True)
class Offence:
    """A packet that was dropped because its sender does not hold its source port."""

    address: IPv4Address
    """External address it was sent from."""
    port: int
    """Its source port; 0 for a packet without one."""
    protocol: int
    """IANA number."""
    mac: str
    """Link address of the sender, ``aa:bb:cc:dd:ee:ff``."""
    host: IPv4Address | None
    """LAN address of the sender, if the neighbour table has it."""


class RouterPlane(Plane):
    """The router programs' maps. Open it after ``ensure_loaded("router", pins)``; one writer at a time."""

    role = "router"

    def __init__(self, maps: dict[str, Map], offences: RingBuffer) -> None:
        super().__init__(maps)
        self._offences = offences
        self._hosts: dict[IPv4Address, int] = {}
        self._lan_mtu = 0
        self._network: tuple[object, ...] | None = None
        self._slots = {
            IPv4Address(key): address.slot
            for key, value in maps["addresses"].items()
            if (address := abi.Address.from_buffer_copy(value)).flags & abi.AddressFlag.EXTERNAL
        }
        for key, value in self._maps["hosts"].items():
            host = abi.Host.from_buffer_copy(value)
            if any(host.address):
                self._hosts[IPv4Address(bytes(host.address))] = struct.unpack("=I", key)[0]
                self._lan_mtu = host.mtu
        self._last_index = max(self._hosts.values(), default=0)
        self._held = self._count_held()

    @classmethod
    def open(cls, pins: Path) -> Self:
        """Raises PlatformError when nothing is loaded there."""
        maps = cls._open_maps(pins)
        ring = RingBuffer(object_get(maps_directory(pins) / "offences"), abi.OFFENCES_SIZE)
        return cls(maps, ring)

    def close(self) -> None:
        self._offences.close()
        super().close()

    def configure(self, lan_ifindex: int, wan_ifindex: int, externals: Mapping[IPv4Address, bool]) -> bool:
        """Set the interfaces and the external addresses; True says that an address is also the router's own.

        Reads the router's addresses, the LAN's prefix and the MTUs from the kernel: call it again when they
        change. Owners of addresses that stay are kept. Returns whether anything is not as it was the last time.
        Raises UsageError (too many addresses), PlatformError (a LAN interface without an IPv4 address).
        """
        local = neighbours.local_addresses()
        lan = next((interface for index, interface in local if index == lan_ifindex), None)
        if lan is None:
            raise PlatformError(f"the LAN interface (index {lan_ifindex}) has no IPv4 address")
        (lan_mtu, lan_mac), (wan_mtu, _) = neighbours.link(lan_ifindex), neighbours.link(wan_ifindex)
        return self.set_network(
            lan_ifindex,
            wan_ifindex,
            externals,
            lan=lan.network,
            local={interface.ip for _, interface in local},
            lan_address=lan.ip,
            wan_address=next((interface.ip for index, interface in local if index == wan_ifindex), None),
            lan_mtu=lan_mtu,
            wan_mtu=wan_mtu,
            lan_mac=lan_mac,
        )

    def set_network(
        self,
        lan_ifindex: int,
        wan_ifindex: int,
        externals: Mapping[IPv4Address, bool],
        *,
        lan: IPv4Network,
        local: Iterable[IPv4Address],
        lan_address: IPv4Address | None = None,
        wan_address: IPv4Address | None = None,
        lan_mtu: int = 0,
        wan_mtu: int = 0,
        lan_mac: bytes = bytes(6),
    ) -> bool:
        """As ``configure``, with what the kernel would say given: the LAN's prefix, the router's own addresses,
        those among them that ICMP errors come from, MTUs (octets, 0: no limit), and the LAN's own link address.
        """
        if len(externals) > abi.EXTERNALS_MAX:
            raise UsageError(f"{len(externals)} external addresses; a router serves at most {abi.EXTERNALS_MAX}")
        flags = dict.fromkeys(local, abi.AddressFlag.LOCAL)
        for external, own in externals.items():
            flags[external] = abi.AddressFlag.EXTERNAL | (abi.AddressFlag.LOCAL if own else 0)
        link = (lan_mtu, wan_mtu, lan_mac)
        network = (dict(externals), lan, flags, lan_address, wan_address, link, lan_ifindex, wan_ifindex)
        if network == self._network:
            return False
        self._remove_externals(self._slots.keys() - externals.keys(), flags)
        self._add_externals(externals.keys() - self._slots.keys())
        addresses = self._set_addresses(flags)
        self._lan_mtu = min(lan_mtu, _MTU_MAX)
        config = abi.RouterConfig(
            lan_ifindex=lan_ifindex,
            wan_ifindex=wan_ifindex,
            lan_network=octets(lan.network_address),
            lan_mask=octets(lan.netmask),
            lan_address=octets(lan_address or _UNSPECIFIED),
            wan_address=octets(wan_address or _UNSPECIFIED),
            wan_mtu=wan_mtu,
            lan_mac=abi.Mac(*lan_mac),
            address_bits=functools.reduce(operator.or_, (1 << abi.address_bit(one.packed) for one in flags), 0),
            near=_near(addresses),
        )
        self._maps["config"].put(ZERO, bytes(config))
        for index in self._hosts.values():
            host = self._host(index)
            former = bytes(host)
            host.ifindex, host.mtu, host.asked = lan_ifindex, self._lan_mtu, 0
            if bytes(host) != former:
                self._maps["hosts"].put(index_key(index), bytes(host))
        self._forget_ways()
        self._network = network
        return True

    def set_links(self, links: Mapping[int, tuple[int, bytes]]) -> None:
        """Interfaces that the programs at XDP may send by: index and link address (six octets) for LINK_LAN
        and LINK_WAN. By those not named they do not.
        """
        for number in range(abi.LINKS):
            ifindex, mac = links.get(number, (0, bytes(6)))
            former = abi.Link.from_buffer_copy(self._maps["links"].get(index_key(number)) or b"")
            if (former.ifindex, bytes(former.mac)) != (ifindex, mac):
                self._maps["links"].put(index_key(number), bytes(abi.Link(ifindex=ifindex, mac=abi.Mac(*mac))))

    def externals(self) -> list[IPv4Address]:
        """The external addresses configured."""
        return sorted(self._slots)

    def set_owners(self, owners: Iterable[Owner]) -> None:
        """Make these the only owners, without touching the ports whose owner stays the same.

        Raises UsageError: an address that is not configured, or more hosts than HOSTS_MAX.
        """
        wanted = {int(external): array("Q", bytes(8 * 65536)) for external in self.externals()}
        indexes: dict[int, int] = {}
        for owner in owners:
            table = wanted.get(int(owner.address))
            if table is None:
                raise UsageError(f"{owner.address} is not an external address of this router")
            host = int(owner.host)
            if host not in indexes:
                indexes[host] = self._index_of(owner.host)
            word, mask = indexes[host] * _ONES[owner.protocol], 0xFFFF * _ONES[owner.protocol]
            for port in range(owner.ports.first, owner.ports.last + 1):
                table[port] = table[port] & ~mask | word
        for number, following in wanted.items():
            with self._ports_of(IPv4Address(number)) as ports:
                present = array("Q", ports.dump()[1])
                ports.put_many(
                    {
                        index_key(port): struct.pack("=Q", following[port])
                        for port in range(65536)
                        if present[port] != following[port]
                    }
                )
        self._held = self._count_held()
        self._forget_hosts()

    def apply(self, add: Iterable[Owner] = (), remove: Iterable[Owner] = ()) -> None:
        """Change some owners. Ports to remove that somebody else owns by now are left alone. Raises as
        ``set_owners``.
        """
        for owner in remove:
            index = self._hosts.get(owner.host)
            if index is not None:
                self._write(owner, expected=index, index=0)
        for owner in add:
            self._write(owner, expected=None, index=self._index_of(owner.host))
        self._forget_hosts()

    def owners(self) -> list[Owner]:
        """Who owns what, as the programs see it; consecutive ports of one owner are one entry."""
        hosts = {index: host for host, index in self._hosts.items()}
        found = []
        for external in self.externals():
            with self._ports_of(external) as ports:
                entries = ports.dump()[1]
            for block, protocol, index in _runs(entries):
                if index in hosts:
                    found.append(Owner(external, block, protocol, hosts[index]))
        return found

    def learn_macs(self) -> int:
        """Copy link addresses of owners from the neighbour table; returns how many owners have one now.

        Until an owner's is known, its packets are taken on trust. Call it after changes of owners, and every
        few seconds.
        """
        return self.set_macs(neighbours.link_addresses(self._config().lan_ifindex))

    def set_macs(self, macs: Mapping[IPv4Address, bytes]) -> int:
        """As ``learn_macs``, with the link addresses (six octets) given. Owners not named keep theirs."""
        known = 0
        for address, index in self._hosts.items():
            host = self._host(index)
            mac = macs.get(address)
            if mac is not None and mac != bytes(host.mac):
                host.mac = abi.Mac(*mac)
                self._maps["hosts"].put(index_key(index), bytes(host))
            known += any(host.mac)
        return known

    def ask_for_macs(self) -> bool:
        """Have the kernel find out the link addresses that are not known; False if all are.

        An owner whose packets come and go by another router is in no neighbour table here.
        """
        unknown = [address for address, index in self._hosts.items() if not any(self._host(index).mac)]
        neighbours.ask_for(self._config().lan_ifindex, unknown)
        return bool(unknown)

    def fileno(self) -> int:
        """Readable when there are offences to drain."""
        return self._offences.fileno()

    def drain_offences(self) -> list[Offence]:
        """Offences since the last call, oldest first; at most OFFENCES_PER_SECOND are reported each
        second.
        """
        records = [abi.Offence.from_buffer_copy(record) for record in self._offences.records()]
        if not records:
            return []
        table = neighbours.link_addresses(self._config().lan_ifindex)
        hosts = {bytes(self._host(index).mac): address for address, index in self._hosts.items()}
        hosts |= {mac: address for address, mac in table.items()}
        return [
            Offence(
                address=IPv4Address(bytes(record.external)),
                port=record.port,
                protocol=record.protocol,
                mac=bytes(record.mac).hex(":"),
                host=hosts.get(bytes(record.mac)),
            )
            for record in records
        ]

    def _config(self) -> abi.RouterConfig:
        return abi.RouterConfig.from_buffer_copy(self._maps["config"].get(ZERO) or b"")

    def _host(self, index: int) -> abi.Host:
        return abi.Host.from_buffer_copy(self._maps["hosts"].get(index_key(index)) or b"")

    def _set_addresses(self, flags: Mapping[IPv4Address, abi.AddressFlag]) -> dict[IPv4Address, abi.Address]:
        """Returns what was written."""
        entries = {address: abi.Address(flag, self._slots.get(address, 0)) for address, flag in flags.items()}
        addresses = self._maps["addresses"]
        for key, _ in addresses.items():
            if IPv4Address(key) not in flags:
                addresses.delete(key)
        addresses.put_many({address.packed: bytes(entry) for address, entry in entries.items()})
        return entries

    def _forget_ways(self) -> None:
        """Have the kernel find every next hop anew: they may be reached by other interfaces now."""
        nowhere = bytes(ctypes.sizeof(abi.Way)) * possible_cpus()
        for index in range(abi.WAYS_MAX):
            self._maps["ways"].put(index_key(index), nowhere)

    def _remove_externals(self, gone: Set[IPv4Address], flags: Mapping[IPv4Address, abi.AddressFlag]) -> None:
        """``flags``: what they are from now on. No program shall find another address's owners in their slots."""
        if not gone:
            return
        config = self._config()
        for near in config.near:
            if IPv4Address(bytes(near.ipv4)) in gone:
                near.ipv4 = octets(_UNSPECIFIED)
        self._maps["config"].put(ZERO, bytes(config))
        for address in gone:
            self._maps["addresses"].put(address.packed, bytes(abi.Address(flags.get(address, 0))))
            self._maps["owners"].delete(index_key(self._slots.pop(address)))

    def _add_externals(self, new: Set[IPv4Address]) -> None:
        free = set(range(abi.EXTERNALS_MAX)) - set(self._slots.values())
        for address in sorted(new):
            fd = create_inner_owners()
            try:
                self._slots[address] = min(free)
                self._maps["owners"].put(index_key(min(free)), struct.pack("=I", fd))
                free.remove(min(free))
            finally:
                os.close(fd)

    def _write(self, owner: Owner, *, expected: int | None, index: int) -> None:
        with self._ports_of(owner.address) as ports:
            entries = {}
            for port in range(owner.ports.first, owner.ports.last + 1):
                entry = abi.PortOwner.from_buffer_copy(ports.get(index_key(port)) or bytes(_NOBODY))
                for port_class in abi.CLASSES_OF[owner.protocol]:
                    former = entry.host[port_class]
                    if expected is None or former == expected:
                        entry.host[port_class] = index
                        self._held[former] -= 1
                        self._held[index] += 1
                entries[index_key(port)] = bytes(entry)
            ports.put_many(entries)

    def _index_of(self, host: IPv4Address) -> int:
        """The host's index, a free one if it has none. A freed one comes last, for fragments may still
        refer to it.
        """
        if host in self._hosts:
            return self._hosts[host]
        taken = set(self._hosts.values())
        for step in range(1, abi.HOSTS_MAX):
            index = (self._last_index + step - 1) % (abi.HOSTS_MAX - 1) + 1
            if index not in taken:
                break
        else:
            raise UsageError(f"a router serves at most {abi.HOSTS_MAX - 1} hosts")
        entry = abi.Host(address=octets(host), ifindex=self._config().lan_ifindex, mtu=self._lan_mtu)
        self._maps["hosts"].put(index_key(index), bytes(entry))
        self._hosts[host] = index
        self._last_index = index
        return index

    def _forget_hosts(self) -> None:
        for host in [host for host, index in self._hosts.items() if not self._held[index]]:
            self._maps["hosts"].put(index_key(self._hosts.pop(host)), bytes(abi.Host()))

    @contextmanager
    def _ports_of(self, external: IPv4Address) -> Iterator[Map]:
        """The map of one external address's owners, open for a while."""
        slot = self._slots.get(external)
        value = None if slot is None else self._maps["owners"].get(index_key(slot))
        if value is None:
            raise UsageError(f"{external} is not an external address of this router")
        ports = Map.by_id(struct.unpack("=I", value)[0])
        try:
            yield ports
        finally:
            ports.close()

    def _count_held(self) -> Counter[int]:
        """Entries of the owner maps by index of the host: who has none left can be forgotten."""
        held: Counter[int] = Counter()
        for external in self.externals():
            with self._ports_of(external) as ports:
                held.update(array("H", ports.dump()[1]))
        return held


def _near(addresses: Mapping[IPv4Address, abi.Address]) -> ctypes.Array[abi.NearAddress]:
    """Those that the programs shall find first: external ones, most of all."""
    first = sorted(addresses, key=lambda address: not addresses[address].flags & abi.AddressFlag.EXTERNAL)
    near = (abi.NearAddress * abi.NEAR_ADDRESSES)()
    for at, address in enumerate(first[: abi.NEAR_ADDRESSES]):
        near[at] = abi.NearAddress(octets(address), addresses[address])
    return near


def _runs(entries: bytes) -> Iterator[tuple[PortRange, Protocol, int]]:
    """Consecutive ports with the same owners, by port; ``entries`` holds 65,536 ``struct owner``."""
    words = array("Q", entries)
    first = 1
    for port in range(2, 65537):
        if port < 65536 and words[port] == words[first]:
            continue
        if words[first]:
            block = PortRange(first, port - 1)
            owner = abi.PortOwner.from_buffer_copy(entries[first * 8 : first * 8 + 8])
            if len(set(owner.host)) == 1:
                yield block, Protocol.ANY, owner.host[0]
            else:
                for port_class in _LEASED_CLASSES:
                    if owner.host[port_class]:
                        yield block, abi.PROTOCOL_OF[port_class], owner.host[port_class]
        first = port
