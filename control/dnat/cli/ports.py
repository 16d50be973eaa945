"""``dnatctl request`` and ``release``: extra or specific ports for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from dnat.cli import words
from dnat.cli.console import output_option
from dnat.cli.show import NEVER
from dnat.client import Client
from dnat.errors import UsageError
from dnat.instance import Instance
from dnat.types import Parity, PortRange, Protocol

_OPTIONS = (
    click.option("--ports", "count", type=click.IntRange(1, 65535), help="How many consecutive ports.  [1]"),
    click.option("--port", "specific", metavar="PORT[-LAST]", help="Exactly these ports."),
    click.option("--protocol", type=click.Choice([p.label for p in Protocol]), default="any", show_default=True),
    click.option("--parity", type=click.Choice([p.label for p in Parity]), default="any", show_default=True),
    click.option("--exact", is_flag=True, help="All or nothing; otherwise fewer ports may be granted."),
    click.option("--lifetime", type=click.IntRange(0, 86400), default=0, help="Seconds; 0 leaves it to the server."),
)


def port_options(command: Callable[..., None]) -> Callable[..., None]:
    """Which ports are wanted; `wished` reads it."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def wished(count: int | None, specific: str | None, **others: Any) -> dict[str, Any]:
    """The options as parameters of the local API. Raises UsageError."""
    if count is not None and specific is not None:
        raise UsageError("--ports asks for a number of ports, --port for particular ones: use one of them")
    wanted = words.ports(specific) if specific is not None else None
    return {"count": len(wanted) if wanted else count or 1, "first": wanted.first if wanted else None, **others}


@click.command()
@port_options
@output_option
def request(output: str, **options: Any) -> None:
    """Lease ports for a program that binds them itself.

    \b
    Examples:  sudo dnatctl request --port 5060 --protocol udp
               sudo dnatctl request --ports 10 --parity even -o json
    """
    wish = wished(**options)
    with Client(Instance.current().socket) as client:
        answer = client.call("request", **wish)
    if output == "json":
        click.echo(json.dumps(answer))
        return
    fewer = f" ({wish['count']} were asked for)" if answer["fewer"] else ""
    click.echo(f"leased {_lease_text(answer['lease'])}{fewer}")


@click.command()
@click.argument("leases", nargs=-1, required=True, metavar="LEASE...")
@output_option
def release(leases: tuple[str, ...], output: str) -> None:
    """Give leases back. LEASE is the identifier, a port in it, or its range, as `dnatctl show leases` prints them.

    \b
    Example:  sudo dnatctl release 5060
    """
    ids = [text for text in leases if words.is_lease_identifier(text)]
    ports = [str(words.ports(text)) for text in leases if text not in ids]
    with Client(Instance.current().socket) as client:
        answer = client.call("release", ids=ids, ports=ports)
    if output == "json":
        click.echo(json.dumps(answer))
        return
    for lease in answer["released"]:
        click.echo(f"released {_lease_text(lease)}")


def _lease_text(lease: dict[str, Any]) -> str:
    ports = PortRange(lease["first"], lease["last"])
    left = "never expires" if lease["expires_in"] > NEVER else f"expires in {lease['expires_in']} s"
    return f"{lease['address']}:{ports} ({lease['protocol']}, {left})"
