"""``dnatctl lab``: a whole network in namespaces on one machine, to try everything in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from dnat.cli import console
from dnat.cli.completion import nodes
from dnat.cli.console import output_option
from dnat.errors import UsageError

_prefix = click.option(
    "--prefix", default="dnat", show_default=True, help="Name of the lab; namespaces are PREFIX-NODE."
)


@click.group()
def lab() -> None:
    """A whole network on this machine, to try everything in.

    Router, phones, SIP host and the outside are network namespaces.

    \b
    Examples:  sudo dnatctl lab up
               sudo dnatctl lab exec phone1 -- dnatctl show
               sudo dnatctl lab exec phone1 -- ping -c 2 203.0.113.2
               sudo dnatctl lab down
    """


@lab.command()
@click.option("--phones", type=click.IntRange(1, 100), default=2, show_default=True)
@click.option("--own-address", is_flag=True, help="Share the router's own WAN address instead of a routed one.")
@click.option("--sip", type=click.Choice(["proxy", "redirect"]), help="Run a SIP server on the node sip.")
@click.option("--routers", type=click.IntRange(1, 4), default=1, show_default=True, help="With --server apart.")
@click.option(
    "--server",
    type=click.Choice(["router", "apart"]),
    default="router",
    show_default=True,
    help="Where the port server is: apart, etcd runs on three nodes, too.",
)
@click.option("--servers", type=click.IntRange(1, 2), default=1, show_default=True, help="With --server apart.")
@click.option(
    "--authentication",
    type=click.Choice(["open", "tofu", "strict"]),
    default="open",
    show_default=True,
    help="The server's mode; with strict, hosts are given keys first.",
)
@click.option("--xdp", is_flag=True, help="Routers send plain packets on at XDP; the cables are made for it.")
@_prefix
def up(
    phones: int,
    own_address: bool,
    sip: str | None,
    routers: int,
    server: str,
    servers: int,
    authentication: str,
    xdp: bool,
    prefix: str,
) -> None:
    """Build the lab and bring every node up. Doing it twice is harmless.

    \b
    Examples:  sudo dnatctl lab up
               sudo dnatctl lab up --phones 3 --sip proxy
    """
    from dnat.lab import control
    from dnat.lab.topology import Topology

    _require_root("lab up")
    apart = servers if server == "apart" else 0
    if servers > 1 and not apart:
        raise UsageError("a router is one server; for more: --server apart")
    topology = Topology(
        prefix=prefix,
        phones=phones,
        own_address=own_address,
        sip=sip,
        routers=routers,
        servers=apart,
        authentication=authentication,
        xdp=xdp,
    )
    control.up(topology, click.echo)


@lab.command()
@_prefix
def down(prefix: str) -> None:
    """Take the lab down, whatever state it is in.

    \b
    Example:  sudo dnatctl lab down
    """
    from dnat.lab import builder

    _require_root("lab down")
    removed = builder.destroy(prefix)
    click.echo(f"removed {len(removed)} namespaces" if removed else f"there was no lab called {prefix}")


@lab.command()
@output_option
@_prefix
def status(output: str, prefix: str) -> None:
    """Say what every node is doing. Exit code 1 when one of them is not up.

    \b
    Example:  dnatctl lab status
    """
    from dnat.lab import control

    topology = control.find(prefix)
    table = console.table({"node": "left", "address": "left", "roles": "left", "state": "sentence"})
    nodes = control.status(topology)
    if output == "json":
        rows = [{"node": n.node.name, "address": str(n.node.address), "up": n.up, "summary": n.summary} for n in nodes]
        click.echo(json.dumps({"nodes": rows}, indent=2))
        sys.exit(0 if all(one.up for one in nodes) else 1)
    for one in nodes:
        mark = "[green]up[/]" if one.up else "[red]down[/]"
        table.add_row(
            one.node.name,
            str(one.node.address),
            ", ".join(one.node.roles) or ("outside" if one.node.name == "ext" else "store"),
            f"{mark} {one.summary}",
        )
    console.write(table)
    if not all(one.up for one in nodes):
        sys.exit(1)


@lab.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("node", shell_complete=nodes)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_prefix
def exec_(node: str, command: tuple[str, ...], prefix: str) -> None:
    """Run COMMAND in NODE, as if logged in there.

    \b
    Example:  sudo dnatctl lab exec phone1 -- dnatctl show
    """
    from dnat.lab import control

    _require_root("lab exec")
    # click hands a "--" on that stands behind the node's name.
    control.execute(control.find(prefix), node, command[1:] if command[0] == "--" else command)


@lab.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("demo-output"), show_default=True)
@_prefix
def demo(output: Path, prefix: str) -> None:
    """Two phones behind one address make real calls.

    Captures and pictures go to the directory --output. The calls are made in the lab that is up, if there is one.

    \b
    Example:  sudo dnatctl lab demo --output /tmp/demo
    """
    from dnat.lab import builder
    from dnat.lab.demo import run_demo
    from dnat.lab.topology import Topology

    _require_root("lab demo")
    if not run_demo(builder.find(prefix) or Topology(prefix=prefix), output, console.output()):
        sys.exit(1)


def _require_root(command: str) -> None:
    from dnat.errors import PlatformError
    from dnat.system.netns import require_root

    try:
        require_root()
    except PlatformError:
        raise UsageError(f"namespaces need root: sudo dnatctl {command}") from None
