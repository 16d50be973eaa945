"""Other programs that have a say in the network: firewalls, containers, network managers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnat.doctor.findings import Finding, Patient, not_tried
from dnat.system import nft
from dnat.system.guests import legacy_tables

_MANAGERS = {
    "systemd-networkd": (
        "removes routes that it did not set when it starts anew; dnat puts them back within a second",
        "set ManageForeignRoutes=no in /etc/systemd/networkd.conf",
    ),
}


def firewalls(patient: Patient) -> Iterator[Finding]:
    """Whether somebody drops what dnat lets through."""
    found = False
    running = _running()
    if "firewalld" in running:
        found = True
        yield Finding(
            "firewall",
            "warn",
            "firewalld is running: it drops inbound packets to ports that it does not know",
            "firewall-cmd --permanent --add-port=PORT/udp for each leased port, or put the LAN into the zone trusted",
        )
    if _ufw_enabled():
        found = True
        advice = "ufw route allow in on WAN out on LAN" if patient.is_router else "ufw allow PORT for each leased port"
        yield Finding("firewall", "warn", "ufw is enabled: it drops inbound packets that it does not know", advice)
    if not patient.is_root:
        yield not_tried("firewall")
        return
    for chain in _dropping_chains():
        if chain["hook"] == "forward" and not patient.is_router:
            continue
        found = True
        docker = " (Docker sets that)" if "dockerd" in running and chain["hook"] == "forward" else ""
        where = f"{chain['family']} {chain['table']} {chain['name']}"
        yield Finding(
            "firewall",
            "warn",
            f"the chain {where} drops {chain['hook']} packets by default{docker}",
            "allow "
            + ("packets between WAN and LAN in it" if chain["hook"] == "forward" else "the leased ports in it")
            + f": nft list chain {where}",
        )
    if "filter" in legacy_tables():
        found = True
        yield Finding(
            "firewall",
            "warn",
            "iptables-legacy has a table filter, which was not looked into",
            "iptables-legacy -S: see that INPUT lets leased ports in, and FORWARD packets between WAN and LAN",
        )
    if not found:
        yield Finding("firewall", "ok", "none that drops by default")


def containers(patient: Patient) -> Iterator[Finding]:
    """How the traffic of containers and virtual machines behind a bridge of this host leaves."""
    names = ", ".join(sorted(_running() & {"dockerd", "containerd", "podman", "libvirtd", "virtqemud"}))
    shown = (patient.shown or {}).get("containers")
    if shown and shown["masquerader"]:
        chain = f" (masqueraded by {shown['masquerader']})"
        if shown["translated"]:
            ports = f"{shown['first']}-{shown['last']}"
            yield Finding("containers", "ok", f"they speak from leased ports, by local ports {ports}{chain}")
        elif patient.config.host.translate_containers:
            advice = "journalctl -u dnat, or the log; until then the router masquerades them"
            yield Finding("containers", "warn", f"not translated{chain}: {shown['reason']}", advice)
        else:
            yield Finding("containers", "ok", f"they leave by the router's masquerading{chain}: {shown['reason']}")
    elif names:
        yield Finding("containers", "ok", names)


def managers(_: Patient) -> Iterator[Finding]:
    """Who else sets addresses and routes."""
    running = _running()
    for name, (text, advice) in _MANAGERS.items():
        # The kernel cuts a program's name off after 15 octets.
        if name[:15] in running and not _foreign_routes_left_alone():
            yield Finding("manager", "warn", f"{name} {text}", advice)
            return
    yield Finding("manager", "ok", "nobody who undoes routes")


def _running() -> set[str]:
    """Names of the programs that run on this machine."""
    names = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            names.add(path.read_text().strip())
        except OSError:
            continue
    return names


def _ufw_enabled() -> bool:
    try:
        return "ENABLED=yes" in Path("/etc/ufw/ufw.conf").read_text()
    except OSError:
        return False


def _foreign_routes_left_alone() -> bool:
    files = [Path("/etc/systemd/networkd.conf"), *Path("/etc/systemd/networkd.conf.d").glob("*.conf")]
    for path in files:
        try:
            text = path.read_text()
        except OSError:
            continue
        if any(line.replace(" ", "").lower() == "manageforeignroutes=no" for line in text.splitlines()):
            return True
    return False


def _dropping_chains() -> list[dict[str, Any]]:
    """Base chains for inbound or forwarded packets whose policy is to drop. Raises PlatformError."""
    return [
        chain
        for chain in nft.base_chains()
        if chain.get("policy") == "drop" and chain["hook"] in ("input", "forward") and chain["family"] in ("ip", "inet")
    ]
