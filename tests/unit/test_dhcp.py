"""How DHCP clients write the option that names the port server."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from dnat.system.dhcp import parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.66.0.1", "10.66.0.1"),
        ("a:42:0:1", "10.66.0.1"),
        ("0a:42:00:01", "10.66.0.1"),
        ("0a420001", "10.66.0.1"),
        ("C0A80001", "192.168.0.1"),
        ('"BCDE"', "66.67.68.69"),
    ],
)
def test_every_spelling(text: str, address: str) -> None:
    assert parse(text) == IPv4Address(address)


@pytest.mark.parametrize(
    "text", ["", "x", "10.66.0", "10.66.0.1 10.66.0.2", "a:42:0", "0a42", '"ABCDE"', "1:2:3:400", "$(reboot)"]
)
def test_nonsense(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse(text)
