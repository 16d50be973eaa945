"""``dnatctl init``: looks at the machine, asks what it cannot know, writes the configuration."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import click

from dnat import config as configuration
from dnat import files
from dnat.cli import words
from dnat.cli.completion import interfaces
from dnat.errors import PlatformError, UsageError
from dnat.guess import Plan, check, foreign, guess, render
from dnat.instance import Instance
from dnat.system import links


@click.command()
@click.option(
    "--role", type=click.Choice(["host", "router"]), help="What this machine is; a router is the server, too."
)
@click.option("--lan", metavar="INTERFACE", shell_complete=interfaces, help="LAN interface.")
@click.option("--wan", metavar="INTERFACE", shell_complete=interfaces, help="WAN interface of a router.")
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
    given = Plan(role or "", lan, wan, external, server)
    target = path or Instance.current().configuration_target()
    text = _guessed(given, known, target, force) if yes else _answered(given, known, target)
    _write(target, text)
    click.echo(text, nl=False)
    click.echo(f"\nwrote {target}", err=True)
    click.echo("next: sudo dnatctl doctor, then sudo dnatctl up (or: sudo systemctl enable --now dnat)", err=True)


def _guessed(given: Plan, known: list[links.Interface], target: Path, force: bool) -> str:
    """The configuration as far as nobody has to be asked. Raises UsageError."""
    text = _configuration(guess(known, links.default_interface(), given), given, known)
    if _says_something(target) and not force:
        raise UsageError(f"{target} says something already; --force replaces it")
    return text


def _answered(given: Plan, known: list[links.Interface], target: Path) -> str:
    """The configuration by the answers of whoever sits there. Raises UsageError."""
    try:
        text = _configuration(_ask(guess(known, links.default_interface(), given), known), given, known)
        if _says_something(target) and not click.confirm(f"{target} is there already. Replace it?", default=False):
            raise UsageError(f"{target} stays as it is")
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo()
        raise UsageError("the answers ended too early, so nothing was written; --yes asks nothing") from None
    return text


def _configuration(plan: Plan, given: Plan, known: list[links.Interface]) -> str:
    check(plan, known)
    if option := foreign(plan.role, given):
        raise UsageError(f"{option} is not for a {plan.role}: leave it out, or choose another --role")
    text = render(plan, known)
    configuration.parse(tomllib.loads(text), "the configuration")
    return text


def _ask(plan: Plan, known: list[links.Interface]) -> Plan:
    """Show each guess and let it be corrected."""
    click.echo("Interfaces here:")
    for link in known:
        addresses = ", ".join(str(address) for address in link.addresses) or "no address"
        click.echo(f"  {link.name:<12} {addresses}{'' if link.up else ' (down)'}")
    role = click.prompt("This machine is a", type=click.Choice(["host", "router"]), default=plan.role)
    uplink = links.default_interface()
    plan = guess(known, uplink, Plan(role, plan.lan, plan.wan, plan.external, plan.server))
    if role == "host":
        question = "PAP server (empty: the default gateway)"
        said = click.prompt(question, default=plan.server or "", show_default=False, value_proc=_server)
        return Plan(role, plan.lan, server=said or None)
    names = [link.name for link in known if link.name != "lo"]
    lan = click.prompt("LAN interface", type=click.Choice(names), default=plan.lan)
    names.remove(lan)
    wan = click.prompt("WAN interface", type=click.Choice(names), default=plan.wan if plan.wan != lan else None)
    plan = guess(known, uplink, Plan(role, lan, wan, plan.external))
    question, guessed = "External addresses that hosts share", " ".join(plan.external) or None
    return Plan(role, lan, wan, click.prompt(question, default=guessed, value_proc=_shared))


def _server(text: str) -> str:
    """An answer that is an address, or empty; otherwise click asks again."""
    try:
        return words.address(text.strip()) if text.strip() else ""
    except UsageError as error:
        raise click.UsageError(str(error)) from None


def _shared(text: str) -> tuple[str, ...]:
    """One address or several; otherwise click asks again."""
    said = text.replace(",", " ").split()
    return tuple(each if each == configuration.WAN_ADDRESS else _server(each) for each in said)


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, text.encode())
    except OSError as error:
        advice = "; run this with sudo" if isinstance(error, PermissionError) else ""
        raise PlatformError(f"{path} cannot be written: {error.strerror}{advice}") from None
