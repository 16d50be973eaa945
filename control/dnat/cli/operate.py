"""``dnatctl invalidate``, ``drain`` and ``reload``: what the operator of a server does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import click

from dnat import config as configuration
from dnat.cli import lifecycle, words
from dnat.cli.console import output_option
from dnat.client import Client
from dnat.errors import DnatError, UsageError
from dnat.instance import Instance
from dnat.types import PortRange


@click.command()
@click.argument("leases", nargs=-1, metavar="[LEASE...]")
@click.option(
    "--host", "hosts", multiple=True, metavar="ADDRESS", help="Everything that the host with this LAN address has."
)
@click.option("--all", "everything", is_flag=True, help="Every lease of every host.")
@click.option("--reason", metavar="TEXT", help="Words for the hosts' logs.")
@output_option
def invalidate(
    leases: tuple[str, ...], hosts: tuple[str, ...], everything: bool, reason: str | None, output: str
) -> None:
    """Take leases back. Their hosts are told at once, and their ports are on hold for a while. (server)

    LEASE is an identifier, a port or a range; every lease that has one of the ports is meant.

    \b
    Example:  sudo dnatctl invalidate 5060 --reason "wrong proxy"
    """
    if not (leases or hosts or everything):
        raise UsageError("say what to take back: leases or ports, --host ADDRESS, or --all")
    named = [text if words.is_lease_identifier(text) else str(words.ports(text)) for text in leases]
    holders = [words.address(text) for text in hosts]
    with Client(Instance.current().socket) as client:
        answer = client.call("invalidate", leases=named, hosts=holders, everything=everything, reason=reason)
    if output == "json":
        click.echo(json.dumps(answer))
        return
    click.echo(f"{answer['leases']} leases were taken back")
    for taken in answer["taken"]:
        click.echo(f"  {taken['host']}: {taken['address']}:{PortRange(taken['first'], taken['last'])}")
    if answer["taken"]:
        click.echo("Which programs used them, and whether their calls go on or end, each host tells: dnatctl show lost")


@click.command()
@click.argument("addresses", nargs=-1, metavar="[ADDRESS...]")
@click.option("--off", is_flag=True, help="Grant again as usual.")
@output_option
def drain(addresses: tuple[str, ...], off: bool, output: str) -> None:
    """Prepare for maintenance. (server)

    Without ADDRESS: grant nothing new; hosts keep what they have, and it is renewed. With external addresses:
    move every host from them to the others. Ends with --off, or when the daemon ends.

    \b
    Examples:  sudo dnatctl drain
               sudo dnatctl drain 198.51.100.1
               sudo dnatctl drain --off
    """
    named = [words.address(text) for text in addresses]
    with Client(Instance.current().socket) as client:
        answer = client.call("drain", addresses=named, off=off)
    if output == "json":
        click.echo(json.dumps(answer))
        return
    moved = f"{answer['leases']} leases were taken back; " if addresses else ""
    click.echo(f"{moved}{answer['summary']}")


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="Configuration file.  [/etc/dnat/dnat.toml]")
@output_option
def reload(path: Path | None, output: str) -> None:
    """Take up a changed configuration.

    The daemon is started anew while its data plane goes on. A file that does not hold changes nothing; after one that
    does not work the former is taken up again. Leases that a server's pool has no longer are taken back at once.

    \b
    Example:  sudo dnatctl reload
    """
    from dnat.system.netns import require_root

    require_root()
    instance = Instance.current()
    if unit := lifecycle.unit(instance):
        _tell(_restarted(unit, instance, path), output)
        return
    path = path or instance.configuration()
    configuration.load(path)
    with Client(instance.socket) as client:
        client.call("stop")
    lifecycle.wait_for_end(instance)
    try:
        _tell(lifecycle.start(instance, path), output)
    except DnatError as error:
        former = instance.configuration_in_use
        if not former.exists():
            raise
        lifecycle.start(instance, former)
        raise type(error)(f"{error} (the former configuration is in use again)") from None


def _tell(summary: str, output: str) -> None:
    click.echo(json.dumps({"summary": summary}) if output == "json" else f"up: {summary}")


def _restarted(unit: str, instance: Instance, path: Path | None) -> str:
    """The daemon is systemd's: a new one belongs into the same unit. Returns what it says of itself."""
    configured = instance.configuration()
    if path is not None and path.absolute() != configured:
        where = instance.configuration_target()
        raise UsageError(f"{unit} takes its configuration from {where}: change that file, then dnatctl reload")
    configuration.load(configured)
    done = subprocess.run(["systemctl", "restart", unit], capture_output=True, text=True, check=False)
    summary = lifecycle.running(instance) if done.returncode == 0 else None
    if summary is None:
        raise DnatError(f"{unit} did not start again; why: journalctl -u {unit}")
    return summary
