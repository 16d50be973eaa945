"""Which way plain packets take through the router: XDP where both drivers can, else TC alone."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from dnat.config import XdpMode
from dnat.dataplane import abi, loader, xdp
from dnat.dataplane.router import RouterPlane
from dnat.system.journal import Entry, Handler, Journal
from dnat.system.links import Interface

KIND = "program at XDP"


class FastPath:
    """The two programs at XDP. The programs at TC are on the same interfaces, and see whatever these pass on."""

    def __init__(self, mode: XdpMode, pins: Path) -> None:
        self._mode = mode
        self._pins = pins
        self._refused = "turned off" if mode == "off" else ""
        """Why XDP is not in use. It is not tried again: in some drivers an attempt takes the link down for a second."""

    @property
    def reason(self) -> str:
        """Why packets go by TC; empty while they go by XDP."""
        return self._refused

    def ensure(self, journal: Journal, plane: RouterPlane, lan: Interface, wan: Interface) -> list[str]:
        """Have the programs on both interfaces, or on neither; returns what was changed, in words."""
        hooks = {abi.LINK_LAN: (lan, "router_lan_xdp"), abi.LINK_WAN: (wan, "router_wan_xdp")}
        changes: list[str] = []
        self._refused = self._refused or self._objection(lan, wan)
        if not self._refused:
            for link, program in hooks.values():
                changes += self._attach(journal, link, program)
        if not self._refused:
            self._refused = _cannot_send(lan, wan)
        if self._refused:
            return changes + _leave(journal, plane, lan, wan, self._refused)
        plane.set_links({number: (link.index, _octets(link.mac)) for number, (link, _) in hooks.items()})
        return changes

    def _objection(self, lan: Interface, wan: Interface) -> str:
        for link in (lan, wan):
            if link.mac is None:
                return f"packets of {link.name} have no link addresses"
            if not xdp.can_redirect(link.index):
                return f"the driver of {link.name} has no XDP"
            if self._mode == "auto" and xdp.is_virtual_cable(link.index):
                return f"{link.name} is a virtual cable (veth), where XDP would halve the speed of TCP"
        return ""

    def _attach(self, journal: Journal, link: Interface, program: str) -> list[str]:
        pin = loader.program_pin(self._pins, program)
        if self._refused or xdp.runs(link.index, pin):
            return []
        journal.add(KIND, f"XDP of {link.name}", interface=link.name)
        if xdp.attach(link.index, pin):
            return [f"attached {program} to XDP of {link.name}"]
        self._refused = f"{link.name} does not take our program at XDP, or has another one"
        return []


def _cannot_send(lan: Interface, wan: Interface) -> str:
    for link in (lan, wan):
        if not xdp.can_send_redirected(link.index):
            return f"the driver of {link.name} does not send what XDP redirects to it"
    return ""


def _leave(journal: Journal, plane: RouterPlane, lan: Interface, wan: Interface, reason: str) -> list[str]:
    plane.set_links({})
    changes = []
    for link in (lan, wan):
        if xdp.attached(link.index):
            xdp.detach(link.index)
            changes.append(f"took the program off XDP of {link.name}: {reason}")
        journal.forget(KIND, f"XDP of {link.name}")
    return changes


def _octets(mac: str | None) -> bytes:
    return bytes.fromhex((mac or "00:00:00:00:00:00").replace(":", ""))


def undo(entry: Entry) -> None:
    """Handler of journal entries of this kind."""
    with contextlib.suppress(OSError):  # the interface is gone
        xdp.detach(socket.if_nametoindex(entry.facts["interface"]))


HANDLERS: dict[str, Handler] = {KIND: undo}
