"""Guesses what a machine is from its interfaces and routes, and writes that down as a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from dnat.config import WAN_ADDRESS
from dnat.errors import UsageError
from dnat.system.links import Interface

# A bridge of containers or virtual machines, a tunnel: not what hosts are plugged into.
_NOT_A_LAN = ("lo", "docker", "br-", "virbr", "veth", "vnet", "tun", "wg", "tailscale", "cni", "flannel", "podman")


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes into the configuration; None leaves a default in place."""

    role: str
    """``host`` or ``router``, which is the server, too."""
    lan: str | None = None
    wan: str | None = None
    external: tuple[str, ...] = ()
    server: str | None = None


def guess(known: Sequence[Interface], uplink: str | None, given: Plan | None = None) -> Plan:
    """Complete ``given``. ``uplink`` is the interface of the default route.

    A machine with a LAN beside the interface of its default route is a router. Its external address is its own on the
    WAN: one that is routed to it cannot be seen from here.
    """
    given = given or Plan("")
    candidates = [link for link in known if link.up and link.addresses and not link.name.startswith(_NOT_A_LAN)]
    wan = given.wan or uplink
    beside = [link.name for link in candidates if link.name != wan]
    role = given.role or ("router" if given.wan or given.external or (uplink and beside) else "host")
    if role == "host":
        return Plan(role, lan=given.lan, server=given.server)
    lan = given.lan or next((link.name for link in candidates if link.name != wan and _is_private(link)), None)
    lan = lan or next(iter(beside), None)
    own = next((_shared(link) for link in known if link.name == wan and link.addresses), None)
    return Plan(role, lan=lan, wan=wan, external=given.external or ((own,) if own else ()))


def lacking(plan: Plan) -> str | None:
    """What a router's plan lacks, as the option that gives it; None when it is whole."""
    if plan.role == "host":
        return None
    for value, option in (
        (plan.lan, "--lan INTERFACE"),
        (plan.wan, "--wan INTERFACE"),
        (plan.external, "--external ADDRESS"),
    ):
        if not value:
            return option
    return "--lan and --wan that differ" if plan.lan == plan.wan else None


def foreign(role: str, given: Plan) -> str | None:
    """An option that was given and says nothing about a machine with this role."""
    options = {"--wan": given.wan, "--external": given.external} if role == "host" else {"--server": given.server}
    return next((option for option, value in options.items() if value), None)


def check(plan: Plan, known: Sequence[Interface]) -> None:
    """Raises UsageError for an interface that is not there, an address that is none, or what is missing."""
    names = [link.name for link in known]
    for name in (plan.lan, plan.wan):
        if name is not None and name not in names:
            raise UsageError(f"no interface called {name}; there are: {', '.join(names)}")
    for text in (*plan.external, *([plan.server] if plan.server else [])):
        if text == WAN_ADDRESS and plan.role == "router":
            continue
        try:
            IPv4Address(text)
        except ValueError:
            raise UsageError(f'"{text}" is not an IPv4 address; write it as 192.0.2.1') from None
    if option := lacking(plan):
        raise UsageError(f"this cannot be guessed here: give it with {option}")


def render(plan: Plan, known: Sequence[Interface]) -> str:
    """The configuration file of a plan that was checked."""
    lines = ["# Written by `dnatctl init`. Every key: dnat.toml(5).", ""]
    if plan.role == "host":
        lines += ['roles = ["host"]', "", "[host]"]
        lines += [f'interface = "{plan.lan}"' if plan.lan else '#interface = "eth0"    # the one of the default route']
        lines += [f'server = "{plan.server}"' if plan.server else '#server = "10.0.0.1"    # the default gateway']
        return "\n".join(lines) + "\n"
    own = {str(address.ip) for link in known for address in link.addresses}
    quoted = ", ".join(f'"{text}"' for text in plan.external)
    kind = "the router's own" if set(plan.external) & {*own, WAN_ADDRESS} else "routed to this router"
    lines += ['roles = ["server", "router"]', "", "[server]"]
    lines += [f"external_addresses = [{quoted}]    # {kind}", ""]
    lines += ["[router]", f'lan = "{plan.lan}"', f'wan = "{plan.wan}"']
    return "\n".join(lines) + "\n"


def _shared(wan: Interface) -> str:
    """The WAN's own address; of PPP, whatever it is: another one comes with each session."""
    return str(wan.addresses[0].ip) if wan.mac else WAN_ADDRESS


def _is_private(link: Interface) -> bool:
    return link.addresses[0].ip.is_private
