"""``dnatctl init``: looks at the machine, asks what it cannot know, writes the configuration."""

from __future__ import annotations

import tomllib
from pathlib import Path

import click

from dnat import config as configuration
from dnat.errors import PlatformError, UsageError
from dnat.guess import Plan, check, guess, render
from dnat.instance import Instance
from dnat.system import links


@click.command()
@click.option(
    "--role", type=click.Choice(["host", "router"]), help="What this machine is; a router is the server, too."
)
@click.option("--lan", metavar="INTERFACE", help="LAN interface.")
@click.option("--wan", metavar="INTERFACE", help="WAN interface of a router.")
@click.option("--external", metavar="ADDRESS", multiple=True, help="Address that hosts share; may be repeated.")
@click.option("--server", metavar="ADDRESS", help="PAP server of a host, if it is not the default gateway.")
@click.option("--config", "path", type=click.Path(path_type=Path), help="File to write.  [/etc/dnat/dnat.toml]")
@click.option("--yes", is_flag=True, help="Ask nothing: take what was given, and guess the rest.")
@click.option("--force", is_flag=True, help="With --yes: replace a configuration that says something.")
def init(
    role: str | None,
    lan: str | None,
    wan: str | None,
    external: tuple[str, ...],
    server: str | None,
    path: Path | None,
    yes: bool,
    force: bool,
) -> None:
    """Write this machine's configuration.

    What it is, its interfaces, its addresses. Guesses from interfaces and routes, and asks before it writes. A file
    that says something is never replaced unasked.

    \b
    Examples:  sudo dnatctl init
               sudo dnatctl init --role router --lan eth1 --wan eth0 --external 198.51.100.1 --yes
    """
    known = links.interfaces()
    plan = guess(known, _uplink(), Plan(role or "", lan, wan, external, server))
    if not yes:
        plan = _ask(plan, known)
    check(plan, known)
    text = render(plan, known)
    configuration.parse(tomllib.loads(text), "the configuration")
    target = path or Instance.current().configuration_target()
    if _says_something(target):
        if yes and not force:
            raise UsageError(f"{target} says something already; --force replaces it")
        if not yes and not click.confirm(f"{target} is there already. Replace it?", default=False):
            raise UsageError(f"{target} stays as it is")
    _write(target, text)
    click.echo(text, nl=False)
    click.echo(f"\nwrote {target}", err=True)
    click.echo("next: sudo dnatctl doctor, then sudo dnatctl up (or: sudo systemctl enable --now dnat)", err=True)


def _uplink() -> str | None:
    return links.default_interface()


def _ask(plan: Plan, known: list[links.Interface]) -> Plan:
    """Show each guess and let it be corrected."""
    click.echo("Interfaces here:")
    for link in known:
        addresses = ", ".join(str(address) for address in link.addresses) or "no address"
        click.echo(f"  {link.name:<12} {addresses}{'' if link.up else ' (down)'}")
    role = click.prompt("This machine is a", type=click.Choice(["host", "router"]), default=plan.role)
    plan = guess(known, _uplink(), Plan(role, plan.lan, plan.wan, plan.external, plan.server))
    if role == "host":
        server = click.prompt("PAP server (empty: the default gateway)", default=plan.server or "", show_default=False)
        return Plan(role, plan.lan, server=server or None)
    names = click.Choice([link.name for link in known if link.name != "lo"])
    lan = click.prompt("LAN interface", type=names, default=plan.lan)
    wan = click.prompt("WAN interface", type=names, default=plan.wan)
    plan = guess(known, _uplink(), Plan(role, lan, wan, plan.external))
    said = click.prompt("External addresses that hosts share", default=" ".join(plan.external) or None)
    return Plan(role, lan, wan, tuple(said.replace(",", " ").split()))


def _says_something(path: Path) -> bool:
    """Whether a configuration is there that is more than comments."""
    try:
        return bool(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True


def _write(path: Path, text: str) -> None:
    """Whole or not at all. Raises PlatformError."""
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        advice = "; run this with sudo" if isinstance(error, PermissionError) else ""
        raise PlatformError(f"{path} cannot be written: {error.strerror}{advice}") from None
