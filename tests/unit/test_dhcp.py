"""How DHCP clients write the option that names the port server."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dnat.system.dhcp import networkd, parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.66.0.1", "10.66.0.1"),
        ("a:42:0:1", "10.66.0.1"),
        ("0a:42:00:01", "10.66.0.1"),
        ("0a420001", "10.66.0.1"),
        ("C0A80001", "192.168.0.1"),
        ('"BCDE"', "66.67.68.69"),
        ("10.66.0.1 10.66.0.2", "10.66.0.1 10.66.0.2"),
        ("10.66.0.1, 10.66.0.2", "10.66.0.1 10.66.0.2"),
        ("10.66.0.1,10.66.0.2", "10.66.0.1 10.66.0.2"),
        ("a:42:0:1:a:42:0:2", "10.66.0.1 10.66.0.2"),
        ("0a4200010a420002", "10.66.0.1 10.66.0.2"),
    ],
)
def test_every_spelling(text: str, address: str) -> None:
    assert parse(text) == tuple(map(IPv4Address, address.split()))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "10.66.0",
        "10.66.0.1 10.66.0",
        "10.66.0.1;10.66.0.2",
        "a:42:0",
        "0a42",
        '"ABCDE"',
        "1:2:3:400",
        "$(reboot)",
    ],
)
def test_nonsense(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse(text)


def test_a_lease_file_of_systemd_networkd(tmp_path: Path) -> None:
    lease = tmp_path / "2"
    head = "# This is private data. Do not parse.\nADDRESS=10.66.0.50\nNETMASK=255.255.255.0\nROUTER=10.66.0.1\n"
    lease.write_text(f"{head}OPTION_226=ffff\nOPTION_227=0a420002\n")
    assert parse(networkd(lease)) == (IPv4Address("10.66.0.2"),)
    lease.write_text(head)
    assert networkd(lease) == "" == networkd(tmp_path / "3")
