"""``dnatctl metrics``: what Prometheus would get."""

from __future__ import annotations

import click

from dnat.client import Client
from dnat.instance import Instance


@click.command()
def metrics() -> None:
    """Print this daemon's metrics in Prometheus' format.

    To have them scraped, set `listen` in the table [metrics] of the configuration.

    \b
    Example:  dnatctl metrics | grep dnat_leases
    """
    with Client(Instance.current().socket) as client:
        click.echo(client.call("metrics")["text"], nl=False)
