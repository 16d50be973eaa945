"""``dnatctl``: thin commands over the daemon's local API, the lab and capture."""

from __future__ import annotations

import importlib
import io
import os
import sys

import click

from dnat import __version__
from dnat.cli.console import coloured
from dnat.errors import DnatError, PlatformError

READER_GONE = 141
"""Exit code, as a shell has it of programs that SIGPIPE ends."""

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

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # click would make it 1, as if the answer were no.
            ctx.exit(READER_GONE)


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
    _complete_streams()
    try:
        code = dnatctl.main(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        if sys.stdin.isatty():
            click.echo(err=True)
        sys.exit(130)
    except DnatError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        _say_no_more()
        sys.exit(READER_GONE)
    except OSError as error:
        if os.environ.get("DNAT_DEBUG"):
            raise
        # What else can fail is caught where it is done, and named.
        _say_no_more()
        where = error.filename or "the output"
        _fail(f"{where} cannot be written: {error.strerror}", PlatformError.exit_code)
    except Exception as error:
        if os.environ.get("DNAT_DEBUG"):
            raise
        _fail(f"internal error: {type(error).__name__}: {error} (DNAT_DEBUG=1 shows where)", 70)


def _complete_streams() -> None:
    """Whoever closed standard output wants to read nothing; but no file may be opened in its place and written to."""
    while (spare := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(spare, True)
    os.close(spare)
    # Python has none where they were closed.
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Of a terminal that has no ✓.
            stream.reconfigure(errors="replace")


def _say_no_more() -> None:
    """Python writes out what is left when it ends, and would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> None:
    click.secho("dnatctl: ", fg="red", bold=True, nl=False, err=True, color=coloured(sys.stderr))
    click.echo(message, err=True)
    sys.exit(code)
