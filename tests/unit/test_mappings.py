"""What of a lease stays a program's own while some of its ports are mapped, and the file of mappings."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dnat.daemon.mappings import Mapping, Mappings, unmapped
from dnat.types import Lease, PortRange, Protocol, Purpose

ANY, TCP, UDP, ICMP = Protocol.ANY, Protocol.TCP, Protocol.UDP, Protocol.ICMP


def lease(protocol: Protocol, purpose: Purpose = Purpose.EXPLICIT) -> Lease:
    return Lease(1, IPv4Address("198.51.100.1"), PortRange(100, 104), protocol, purpose, 0.0)


@pytest.mark.parametrize(
    ("held", "mapped", "left"),
    [
        (lease(UDP), [], [("100-104", UDP)]),
        (lease(UDP), [(UDP, 102)], [("100-101", UDP), ("103-104", UDP)]),
        (lease(UDP), [(UDP, 100), (UDP, 104)], [("101-103", UDP)]),
        (lease(UDP), [(TCP, 102)], [("100-104", UDP)]),
        (lease(UDP), [(UDP, 99), (UDP, 105)], [("100-104", UDP)]),
        (lease(ANY), [(UDP, 102)], [("100-101", ANY), ("102", ICMP), ("102", TCP), ("103-104", ANY)]),
        (lease(ANY), [(UDP, 100), (TCP, 100)], [("100", ICMP), ("101-104", ANY)]),
        (lease(UDP, Purpose.EPHEMERAL), [(UDP, 102)], [("100-104", UDP)]),
    ],
)
def test_unmapped(held: Lease, mapped: list[tuple[Protocol, int]], left: list[tuple[str, Protocol]]) -> None:
    mappings = [Mapping(protocol, 5000, port, leased=False) for protocol, port in mapped]
    assert [(str(ports), protocol) for ports, protocol in unmapped(held, mappings)] == left


def test_mappings_are_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mappings.json"
    one, other = Mapping(TCP, 80, 8080, leased=True), Mapping(UDP, 80, 8081, leased=False)
    mappings = Mappings(path)
    mappings.add(one)
    mappings.add(other)
    assert list(Mappings(path)) == [one, other]
    mappings.remove(one)
    assert list(Mappings(path)) == [other]
    assert Mappings(path).get(UDP, 80) == other


@pytest.mark.parametrize("octets", [b"", b"{}", b"[{}]", b"\xff"])
def test_a_file_that_cannot_be_read_maps_nothing(tmp_path: Path, octets: bytes) -> None:
    path = tmp_path / "mappings.json"
    path.write_bytes(octets)
    assert list(Mappings(path)) == []
