"""What a shell completes that is a matter of this machine."""

from __future__ import annotations

import socket

import click


def interfaces(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of network interfaces."""
    return [name for _, name in socket.if_nameindex() if name.startswith(incomplete)]


def nodes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Nodes of the lab that is up."""
    from dnat.lab import builder

    topology = builder.find(ctx.params.get("prefix") or "dnat")
    return [node.name for node in topology.nodes if node.name.startswith(incomplete)] if topology else []
