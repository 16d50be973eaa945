"""``dnatctl``: thin commands over the daemon's local API, the lab and capture."""

from __future__ import annotations

import importlib
import os
import sys

import click

from dnat import __version__
from dnat.cli.console import coloured
from dnat.errors import DnatError

_COMMANDS = {
    "init": ("dnat.cli.init", "init"),
    "doctor": ("dnat.cli.doctor", "doctor"),
    "up": ("dnat.cli.lifecycle", "up"),
    "down": ("dnat.cli.lifecycle", "down"),
    "status": ("dnat.cli.lifecycle", "status"),
    "show": ("dnat.cli.show", "show"),
    "request": ("dnat.cli.ports", "request"),
    "release": ("dnat.cli.ports", "release"),
    "hold": ("dnat.cli.programs", "hold"),
    "watch": ("dnat.cli.programs", "watch"),
    "map": ("dnat.cli.mappings", "map_"),
    "unmap": ("dnat.cli.mappings", "unmap"),
    "ping": ("dnat.cli.ping", "ping"),
    "sip": ("dnat.cli.sip", "sip"),
    "provision": ("dnat.cli.provision", "provision"),
    "invalidate": ("dnat.cli.operate", "invalidate"),
    "drain": ("dnat.cli.operate", "drain"),
    "reload": ("dnat.cli.operate", "reload"),
    "whois": ("dnat.cli.history", "whois"),
    "history": ("dnat.cli.history", "history"),
    "metrics": ("dnat.cli.metrics", "metrics"),
    "key": ("dnat.cli.key", "key"),
    "capture": ("dnat.cli.capture", "capture"),
    "lab": ("dnat.cli.lab", "lab"),
}


class _LazyGroup(click.Group):
    """Imports a command's module when that command is used: ``show`` must not wait for scapy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dnatctl")
def dnatctl() -> None:
    """Distributed NAT: many hosts, one external IPv4 address, no state in the router.

    \b
    On a host:      sudo dnatctl up
                    dnatctl show
    To try it all:  sudo dnatctl lab up
                    sudo dnatctl lab exec phone1 -- dnatctl show
    """


def main() -> None:
    """Entry point: turns errors into one sentence and an exit code."""
    try:
        sys.exit(dnatctl.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except DnatError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if os.environ.get("DNAT_DEBUG"):
            raise
        _fail(f"internal error: {type(error).__name__}: {error} (DNAT_DEBUG=1 shows where)", 70)


def _fail(message: str, code: int) -> None:
    click.secho("dnatctl: ", fg="red", bold=True, nl=False, err=True, color=coloured(sys.stderr))
    click.echo(message, err=True)
    sys.exit(code)
