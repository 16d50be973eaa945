"""Which port servers the LAN's DHCP server names: option 227, IPv4 addresses (docs/operation.md)."""

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

_OCTETS = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2})+")
_DIGITS = re.compile(r"([0-9a-fA-F]{8})+")
_TEXT = re.compile(r'"[\x20-\x7e]+"')
_LENGTH = 4


def port_servers(link: Interface) -> tuple[IPv4Address, ...]:
    """What DHCP said on an interface; nothing if it said nothing, or nothing that can be understood."""
    noted = RUN_DIRECTORY / "dhcp" / str(netns.inode()) / link.name
    text = _first_line(noted)
    if not text and netns.instance_name() == netns.DEFAULT_INSTANCE:
        text = networkd(NETWORKD_LEASES / str(link.index))
    if not text:
        return ()
    try:
        return parse(text)
    except ValueError:
        log.warning("DHCP option %d on %s is no list of IPv4 addresses: %.80r", OPTION, link.name, text)
        return ()


def parse(text: str) -> tuple[IPv4Address, ...]:
    """The addresses as DHCP clients write them: ``10.66.0.1 10.66.0.2``, ``a:42:0:1``, ``0a420001``, or ``"BCDE"``.

    The last is what dhclient makes of an option it does not know whose octets are all printable. Raises ValueError.
    """
    if _OCTETS.fullmatch(text):
        octets = bytes(int(octet, 16) for octet in text.split(":"))
    elif _DIGITS.fullmatch(text):
        octets = bytes.fromhex(text)
    elif _TEXT.fullmatch(text):
        octets = text[1:-1].encode()
    else:
        return tuple(map(IPv4Address, re.split(r",? +|,", text)))
    if len(octets) % _LENGTH:
        raise ValueError(f"{len(octets)} octets are no addresses")
    return tuple(IPv4Address(octets[start : start + _LENGTH]) for start in range(0, len(octets), _LENGTH))


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
