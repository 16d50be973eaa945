"""Which port server the LAN's DHCP server names: option 227, one IPv4 address (docs/operation.md)."""

from __future__ import annotations

import logging
import re
from ipaddress import IPv4Address
from pathlib import Path

from dnat.system import netns
from dnat.system.links import Interface
from dnat.system.paths import RUN_DIRECTORY

log = logging.getLogger(__name__)

OPTION = 227
"""Of those that every site may use as it likes (RFC 3942)."""
NETWORKD_LEASES = Path("/run/systemd/netif/leases")

_HEXADECIMAL = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){3}")


def port_server(link: Interface) -> IPv4Address | None:
    """What DHCP said on an interface; None if it said nothing, or nothing that can be understood."""
    noted = RUN_DIRECTORY / "dhcp" / str(netns.inode()) / link.name
    text = _first_line(noted)
    if not text and netns.instance_name() == netns.DEFAULT_INSTANCE:
        text = networkd(NETWORKD_LEASES / str(link.index))
    if not text:
        return None
    try:
        return parse(text)
    except ValueError:
        log.warning("DHCP option %d on %s is no IPv4 address: %.80r", OPTION, link.name, text)
        return None


def parse(text: str) -> IPv4Address:
    """The address as DHCP clients write it: ``10.66.0.1``, ``a:42:0:1``, ``0a420001``, or ``"BCDE"``.

    The last is what dhclient makes of an option it does not know whose octets are all printable. Raises ValueError.
    """
    if _HEXADECIMAL.fullmatch(text):
        return IPv4Address(bytes(int(octet, 16) for octet in text.split(":")))
    if re.fullmatch(r"[0-9a-fA-F]{8}", text):
        return IPv4Address(bytes.fromhex(text))
    if re.fullmatch(r'"[\x20-\x7e]{4}"', text):
        return IPv4Address(text[1:-1].encode())
    return IPv4Address(text)


def networkd(path: Path) -> str:
    """The option in a lease file of systemd-networkd."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    name = f"OPTION_{OPTION}="
    return next((line.removeprefix(name).strip() for line in lines if line.startswith(name)), "")


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""
