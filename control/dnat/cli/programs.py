"""``dnatctl hold`` and ``watch``: the local API for programs that are not written in Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import click

from dnat.cli.ports import port_options, wished
from dnat.client import Client, PortLease, lease
from dnat.errors import PeerError, UsageError
from dnat.instance import Instance
from dnat.types import PortRange


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@port_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def hold(command: tuple[str, ...], **options: Any) -> None:
    """Run COMMAND with ports of its own while it runs.

    They are given back when it ends. It finds them in its environment: DNAT_ADDRESS, DNAT_PORT, DNAT_LAST_PORT, and is
    sent SIGTERM when they are lost. Needs no root where the operator allows it.

    \b
    Example:  dnatctl hold --ports 2 --parity even -- sh -c 'echo $DNAT_ADDRESS:$DNAT_PORT'
    """
    started: list[subprocess.Popen[bytes]] = []

    def lost(ports: PortLease) -> None:
        for process in started:
            process.terminate()

    with lease(**wished(**options), on_lost=lost) as ports:
        about = {"DNAT_ADDRESS": ports.address, "DNAT_PORT": str(ports.first), "DNAT_LAST_PORT": str(ports.last)}
        try:
            started.append(subprocess.Popen(command[1:] if command[0] == "--" else command, env=os.environ | about))
        except OSError as error:
            raise UsageError(f"{command[0]} cannot be run: {error.strerror}") from None
        if not ports.held:
            lost(ports)
        code = started[0].wait()
        if ports.reason:
            raise PeerError(f"the ports were lost: {ports.reason}")
    sys.exit(code if code >= 0 else 128 - code)


@click.command()
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--count", type=click.IntRange(1), help="End after so many events.")
def watch(output: str, count: int | None) -> None:
    """Say what happens to this host's leases, as it happens.

    And to its external address. Ends when interrupted.

    \b
    Example:  dnatctl watch -o json
    """
    with Client(Instance.current().socket) as client:
        client.call("watch")
        while count is None or count > 0:
            event = client.event()
            click.echo(json.dumps(event) if output == "json" else _text(event))
            count = None if count is None else count - 1


def _text(event: dict[str, Any]) -> str:
    match event:
        case {"event": "address", "former": former, "address": address}:
            return f"address  {former or 'none'} → {address or 'none'}"
        case {"event": str(kind), "lease": dict(named)}:
            ports = PortRange(named["first"], named["last"])
            why = f": {event['reason']}" if event.get("reason") else ""
            return f"{kind:8} {named['address']}:{ports} ({named['protocol']}, {named['purpose']}){why}"
        case _:
            return str(event.get("event"))
