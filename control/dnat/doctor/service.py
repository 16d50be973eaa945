"""The daemon, its server, and who listens on which ports."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from dnat.doctor.findings import Finding, Patient
from dnat.pap.codec import HEADER
from dnat.pap.messages import SERVER_PORT, MessageType
from dnat.system import links
from dnat.types import PortRange

_TRIES, _SECONDS = 3, 0.7
_NO_VERSION = 255
_LISTEN = "0A"
_UDP_UNCONNECTED = "07"
_LOW_SHARE = 0.1


def daemon(patient: Patient) -> Iterator[Finding]:
    """Whether it runs, with what it needs."""
    if patient.shown is None:
        yield Finding("daemon", "warn", "dnat is not up here", "sudo dnatctl up")
        return
    if patient.is_host and not patient.shown["leases"]:
        yield Finding("daemon", "fail", "up, but without ports", "look at the server, and at the daemon's log")
        return
    store = patient.shown.get("router", {}).get("store")
    if store is not None and not store["reachable"]:
        yield Finding(
            "daemon",
            "warn",
            "up, but the lease store does not answer: this router forwards by what it knew last",
            "look at the etcd members in store.endpoints, and at the daemon's log",
        )
        return
    yield Finding("daemon", "ok", f"up as {', '.join(patient.shown['roles'])}")


def server(patient: Patient) -> Iterator[Finding]:
    """Whether the PAP server answers: a question of no known version must be refused (docs/pap.md, 3)."""
    if not patient.is_host:
        return
    named = tuple(map(IPv4Address, patient.config.host.servers))
    for address in named or (links.default_gateway().gateway,):
        if _answers(address):
            yield Finding("server", "ok", f"the PAP server {address} answers")
        else:
            yield Finding(
                "server",
                "fail",
                f"no PAP server answers at {address}, UDP port {SERVER_PORT}",
                "run `dnatctl up` on the router and let the port through its firewall; or name the server: host.server",
            )


def _answers(address: IPv4Address) -> bool:
    transaction = secrets.randbits(64)
    question = HEADER.pack(_NO_VERSION, MessageType.REQUEST, 0, HEADER.size, transaction, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        own = links.neighbour(address).address if not address.is_loopback else address
        asking.bind((str(own), 0))
        asking.settimeout(_SECONDS)
        for _ in range(_TRIES):
            try:
                asking.sendto(question, (str(address), SERVER_PORT))
                answer, sender = asking.recvfrom(2000)
            except OSError:
                continue
            if len(answer) >= HEADER.size and sender[0] == str(address):
                return bool(HEADER.unpack_from(answer)[4] == transaction)
    return False


def ports(patient: Patient) -> Iterator[Finding]:
    """Whether programs that wait for the outside do so on ports that are this host's."""
    if not patient.is_host or patient.shown is None:
        return
    leased = [PortRange(one["first"], one["last"]) for one in patient.shown["leases"] if one["purpose"] != "translated"]
    external = set(patient.shown["external_addresses"])
    foreign = sorted(
        (protocol, port)
        for protocol, address, port in listening()
        if (address in external or address == "0.0.0.0") and not any(port in one for one in leased)
    )
    if foreign:
        names = ", ".join(f"{port}/{protocol}" for protocol, port in foreign[:8])
        more = f" and {len(foreign) - 8} more" if len(foreign) > 8 else ""
        yield Finding(
            "ports",
            "warn",
            f"programs listen on ports that the outside cannot reach: {names}{more}",
            "lease those that it should reach: sudo dnatctl request --port PORT",
        )
    else:
        yield Finding("ports", "ok", "every program that listens can be reached, or listens on the LAN only")


def listening() -> Iterator[tuple[str, str, int]]:
    """Protocol, IPv4 address and port of every socket that waits for packets from anybody."""
    for protocol, state in (("tcp", _LISTEN), ("udp", _UDP_UNCONNECTED)):
        for line in Path(f"/proc/thread-self/net/{protocol}").read_text().splitlines()[1:]:
            _, local, _, found, *_ = line.split()
            if found == state:
                address, port = local.split(":")
                yield protocol, str(IPv4Address(bytes.fromhex(address)[::-1])), int(port, 16)


def pool(patient: Patient) -> Iterator[Finding]:
    """Server: whether ports are left."""
    if "server" not in patient.config.roles or patient.shown is None:
        return
    ranges = [PortRange.parse(text) for text in patient.config.server.ports]
    total = sum(map(len, ranges)) * len(patient.config.server.external_addresses)
    taken = sum(one["last"] - one["first"] + 1 for one in patient.shown["leases"])
    text = f"{taken} of {total} ports are leased"
    if total - taken < total * _LOW_SHARE:
        yield Finding("pool", "warn", text, "add an address to server.external_addresses, or widen server.ports")
    else:
        yield Finding("pool", "ok", text)
