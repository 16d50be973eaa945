"""Interfaces, routes, sysctls, ARP, MTU and offloads."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from dnat.config import WAN_ADDRESS
from dnat.doctor.findings import Finding, Patient
from dnat.system import links, sysctl

# linux/sockios.h, linux/ethtool.h, linux/if.h, linux/if_arp.h
_SIOCGIFFLAGS, _IFF_RUNNING = 0x8913, 0x40
_SIOCETHTOOL, _ETHTOOL_GFLAGS, _LRO = 0x8946, 0x25, 1 << 15
_COMPLETE = 0x2
# RFC 1918 and RFC 6598
_NOT_PUBLIC = [IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")]


def lan_name(patient: Patient) -> str:
    """The LAN interface; raises PlatformError if there is none."""
    settings = patient.config
    configured = settings.router.lan if patient.is_router else settings.host.interface
    return links.interface(configured).name if configured else links.default_gateway().interface


def _names(patient: Patient) -> dict[str, str]:
    """Interfaces in use, by what they are."""
    found = {"LAN": lan_name(patient)}
    if patient.is_router and patient.config.router.wan:
        found["WAN"] = patient.config.router.wan
    return found


def interfaces(patient: Patient) -> Iterator[Finding]:
    """Whether they are there, up, and have addresses."""
    for kind, name in _names(patient).items():
        link = links.interface(name)
        addresses = ", ".join(str(address) for address in link.addresses)
        if not link.up:
            yield Finding("interfaces", "fail", f"{kind} {name} is down", f"ip link set {name} up")
        elif not addresses:
            yield Finding(
                "interfaces", "fail", f"{kind} {name} has no IPv4 address", "give it one, or start DHCP on it"
            )
        elif not _carrier(name):
            yield Finding("interfaces", "fail", f"{kind} {name} has no link", "plug in the cable at both ends")
        else:
            yield Finding("interfaces", "ok", f"{kind} {name} {addresses}")


def _carrier(name: str) -> bool:
    # Asked for by netlink, not /sys: that shows the namespace in which it was mounted.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        answer = fcntl.ioctl(asking, _SIOCGIFFLAGS, struct.pack("16sh14x", name.encode(), 0))
    return bool(struct.unpack_from("h", answer, 16)[0] & _IFF_RUNNING)


def routes(patient: Patient) -> Iterator[Finding]:
    """Whether there is a way out."""
    if patient.is_router and _needs_no_gateway(patient):
        yield Finding("routes", "ok", f"default route by {patient.config.router.wan}, which needs no gateway")
        return
    uplink = links.default_gateway()
    if patient.is_router and uplink.interface != patient.config.router.wan:
        yield Finding(
            "routes",
            "warn",
            f"the default route leads through {uplink.interface}, not through the WAN interface",
            f"ip route replace default via GATEWAY dev {patient.config.router.wan}",
        )
    else:
        yield Finding("routes", "ok", f"default route through {uplink.gateway} on {uplink.interface}")


def _needs_no_gateway(patient: Patient) -> bool:
    """Whether the way out is a WAN without link addresses: PPP, or an IP tunnel."""
    wan = patient.config.router.wan
    without = [link.name for link in links.interfaces() if link.mac is None]
    return wan in without and links.default_interface() == wan


def arp(patient: Patient) -> Iterator[Finding]:
    """Whether the gateway answers ARP."""
    if patient.is_router and _needs_no_gateway(patient):
        return
    uplink = links.default_gateway()
    _provoke(uplink.gateway)
    for line in Path("/proc/thread-self/net/arp").read_text().splitlines()[1:]:
        address, _, flags, mac, _, interface = line.split()
        if (address, interface) == (str(uplink.gateway), uplink.interface) and int(flags, 16) & _COMPLETE:
            yield Finding("arp", "ok", f"{uplink.gateway} is at {mac}")
            return
    yield Finding(
        "arp",
        "fail",
        f"{uplink.gateway} does not answer ARP on {uplink.interface}",
        "look at cable, switch and VLAN, and whether the router is on",
    )


def _provoke(address: IPv4Address) -> None:
    """Make the kernel ask for a link address: a datagram to the discard port, and the time an answer takes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(0.3)
        try:
            sender.connect((str(address), 9))
            sender.send(b"")
            sender.recv(1)
        except OSError:
            pass


def sysctls(patient: Patient) -> Iterator[Finding]:
    """What the kernel must be told, and what contradicts it."""
    name = lan_name(patient)
    if patient.shown is not None:
        wanted = {"net/ipv4/ip_forward": "1"} if patient.is_router else {}
        if patient.is_host:
            wanted |= {f"net/ipv4/conf/{name}/accept_local": "1"}
        wrong = [key for key, value in wanted.items() if sysctl.read(key) != value]
        if wrong:
            yield Finding(
                "sysctls",
                "fail",
                f"{', '.join(wrong).replace('/', '.')} changed behind our back",
                "find out what sets it (sysctl.d, a firewall); the daemon repairs it within 10 seconds",
            )
            return
    if patient.is_host and sysctl.read("net/ipv4/conf/all/rp_filter") == "1":
        yield Finding(
            "sysctls",
            "warn",
            "net.ipv4.conf.all.rp_filter=1 drops packets between hosts that share the address",
            "sysctl -w net.ipv4.conf.all.rp_filter=0, and the same in /etc/sysctl.d",
        )
    else:
        yield Finding("sysctls", "ok", "as needed")


def mtu(patient: Patient) -> Iterator[Finding]:
    """Whether packets of one side fit through the other."""
    found = {kind: links.interface(name).mtu for kind, name in _names(patient).items()}
    text = ", ".join(f"{kind} {octets}" for kind, octets in found.items())
    if min(found.values()) < 1280:
        yield Finding("mtu", "warn", f"{text}: SIP messages will be fragmented", "raise it to 1280 at least")
    elif found.get("WAN", found["LAN"]) < found["LAN"]:
        yield Finding(
            "mtu",
            "warn",
            f"{text}: large packets from the LAN need path MTU discovery",
            "let ICMP through, or lower the MTU of the hosts to that of the WAN",
        )
    else:
        yield Finding("mtu", "ok", text)


def offloads(patient: Patient) -> Iterator[Finding]:
    """Large receive offload glues packets together in a way that cannot be forwarded."""
    glued = [name for name in _names(patient).values() if _flags(name) & _LRO]
    for name in glued:
        yield Finding("offloads", "warn", f"{name} has LRO on: forwarded packets grow", f"ethtool -K {name} lro off")
    if not glued:
        yield Finding("offloads", "ok", "nothing that harms")


def _flags(name: str) -> int:
    """Offloads as of `ethtool_value` with ETHTOOL_GFLAGS; 0 where the driver has none."""
    value = bytearray(struct.pack("II", _ETHTOOL_GFLAGS, 0))
    pointer = (struct.pack("16sP", name.encode(), ctypes.addressof(ctypes.c_char.from_buffer(value)))).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            fcntl.ioctl(asking, _SIOCETHTOOL, pointer)
        except OSError:
            return 0
    return int(struct.unpack("II", value)[1])


def _wan_address(name: str) -> Finding:
    addresses = next((link.addresses for link in links.interfaces() if link.name == name), ())
    if addresses:
        return Finding("address", "ok", f"{addresses[0].ip}, whatever address {name} has, is shared")
    return Finding("address", "fail", f"{name}, whose address is to be shared, has none", "connect it, or name another")


def external_address(patient: Patient) -> Iterator[Finding]:
    """Router: whether the shared address leads here."""
    if not patient.is_router:
        return
    own = {address.ip for link in links.interfaces() for address in link.addresses}
    for text in patient.config.server.external_addresses:
        if text == WAN_ADDRESS:
            yield _wan_address(patient.config.router.wan or "")
        elif IPv4Address(text) in own:
            yield Finding("address", "ok", f"{text} is this router's own")
        elif any(IPv4Address(text) in network for network in _NOT_PUBLIC):
            yield Finding(
                "address",
                "warn",
                f"{text} is a private address: only the network before this router can reach it",
                "use the public address, or let the router before this one forward ports",
            )
        else:
            yield Finding(
                "address", "ok", f"{text} must be routed here by the provider; try it: dnatctl ping, from outside"
            )
