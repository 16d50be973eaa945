"""``dnatctl map`` and ``unmap``: static bindings for programs that cannot be told which port to use."""

from __future__ import annotations

import json
from typing import Any

import click

from dnat.cli.console import output_option
from dnat.client import Client
from dnat.instance import Instance

_port = click.IntRange(1, 65535)
_protocol = click.argument("protocol", type=click.Choice(["tcp", "udp"]))
_local_port = click.argument("local_port", metavar="LOCAL_PORT", type=_port)


@click.command("map")
@_protocol
@_local_port
@click.option("--port", type=_port, help="Port on the external address.  [any that is free]")
@output_option
def map_(protocol: str, local_port: int, port: int | None, output: str) -> None:
    """Let the outside reach a program at LOCAL_PORT.

    By a port of the external address, leased if need be. It stays until `dnatctl unmap` or `dnatctl down`. Packets that
    the program sends leave from that port.

    \b
    Example:  sudo dnatctl map tcp 80 --port 8080
    """
    with Client(Instance.current().socket) as client:
        _tell("mapped", client.call("map", protocol=protocol, local_port=local_port, port=port), output)


@click.command()
@_protocol
@_local_port
@output_option
def unmap(protocol: str, local_port: int, output: str) -> None:
    """End what `dnatctl map` made.

    The port is given back if it was leased for that.

    \b
    Example:  sudo dnatctl unmap tcp 80
    """
    with Client(Instance.current().socket) as client:
        _tell("unmapped", client.call("unmap", protocol=protocol, local_port=local_port), output)


def _tell(done: str, mapping: dict[str, Any], output: str) -> None:
    if output == "json":
        click.echo(json.dumps(mapping))
        return
    outside = f"{mapping['address']}:{mapping['port']}"
    click.echo(f"{done} {mapping['protocol']} port {mapping['local_port']}, outside {outside}")
