"""``dnatctl sip``: the SIP server of this machine."""

from __future__ import annotations

import json
import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dnat.cli import console
from dnat.cli.console import output_option
from dnat.cli.watching import repeat, watch_options
from dnat.client import Client
from dnat.errors import UsageError
from dnat.instance import Instance


@click.group()
def sip() -> None:
    """Users, registrations and calls of the SIP server here.

    It runs on a machine with the role "sip".

    \b
    Examples:  sudo dnatctl sip users add alice
               sudo dnatctl sip registrations
    """


@sip.command()
@output_option
def status(output: str) -> None:
    """Say whether the SIP server runs, and on which ports. Exit code 1 when it does not.

    \b
    Example:  dnatctl sip status -o json
    """
    answer = _server()
    if output == "json":
        click.echo(json.dumps(answer, indent=2))
    else:
        state = "up" if answer["running"] else f"down: {answer['trouble']}"
        click.echo(f"{answer['mode']} at {answer['address']}:{answer['port']} (UDP and TCP): {state}")
        if answer["registrar"]:
            click.echo(f"asks the registrar at {answer['registrar']}: users and registrations are there")
        if answer["tls_port"]:
            click.echo(f"TLS at {answer['address']}:{answer['tls_port']}, certificate {answer['certificate']}")
        click.echo(f"domain {answer['domain']}, realm {answer['realm']}, restarted {answer['restarts']} times")
    if not answer["running"]:
        sys.exit(1)


@sip.command()
@output_option
def registrations(output: str) -> None:
    """List where each user can be reached.

    That is the phone's combination network address.

    \b
    Example:  dnatctl sip registrations
    """
    from dnat.sip import database

    found = [asdict(one) for one in database.registrations(Path(_server()["registrations"]))]
    _print(found, ("user", "contact", "expires_in", "agent"), output, "nobody is registered")


@sip.command()
@watch_options
@output_option
def calls(watch: float | None, count: int | None, output: str) -> None:
    """List the calls that go through the proxy now. A redirect server sees none: they run directly.

    With --watch and -o json a document per line.

    \b
    Example:  sudo dnatctl sip calls --watch 1
    """
    from dnat.sip import rpc

    columns = ("state", "caller", "caller_at", "callee", "callee_at", "seconds", "call_id")

    def look() -> list[dict[str, Any]]:
        dialogs = rpc.call(Path(_server()["rpc"]), "dlg.list") or []
        # Kamailio remembers a call for a while after its end.
        return [call for call in map(_call, dialogs) if call["state"] != "ended"]

    def tell(found: list[dict[str, Any]]) -> None:
        _print(found, columns, output, "no calls", indent=None if watch else 2)

    repeat(look, tell, output, watch, count)


@sip.group()
def users() -> None:
    """Who may register and call through this server.

    \b
    Example:  sudo dnatctl sip users list
    """


@users.command(name="add")
@click.argument("name")
@click.option("--password", help="By default a random one, which is printed.")
@output_option
def add(name: str, password: str | None, output: str) -> None:
    """Add a user, or give one a new password.

    \b
    Example:  sudo dnatctl sip users add alice
    """
    from dnat.sip import database

    server = _server()
    chosen = password if password is not None else secrets.token_urlsafe(12)
    if not chosen:
        raise UsageError("an empty password protects nobody")
    new = database.set_user(Path(server["users"]), name, server["realm"], chosen)
    if output == "json":
        click.echo(json.dumps({"user": name, "domain": server["domain"], "password": chosen, "new": new}))
        return
    told = "" if password is not None else f", password {chosen}"
    click.echo(f"{'added' if new else 'changed'} {name}@{server['domain']}{told}")


@users.command(name="list")
@output_option
def list_(output: str) -> None:
    """List the users.

    \b
    Example:  sudo dnatctl sip users list -o json
    """
    from dnat.sip import database

    server = _server()
    found = [{"user": name, "domain": server["domain"]} for name in database.users(Path(server["users"]))]
    _print(found, ("user", "domain"), output, "there are no users")


@users.command()
@click.argument("name")
@output_option
def remove(name: str, output: str) -> None:
    """Remove a user; a registration ends when it expires.

    \b
    Example:  sudo dnatctl sip users remove alice
    """
    from dnat.sip import database

    if not database.remove_user(Path(_server()["users"]), name):
        raise UsageError(f'there is no user "{name}"; `dnatctl sip users list` lists them')
    click.echo(json.dumps({"removed": name}) if output == "json" else f"removed {name}")


def _server() -> dict[str, Any]:
    with Client(Instance.current().socket) as client:
        answer: dict[str, Any] = client.call("sip")
    return answer


def _call(dialog: dict[str, Any]) -> dict[str, Any]:
    """One call of Kamailio's list, in our words."""
    import time

    states = {1: "calling", 2: "ringing", 3: "answered", 4: "talking", 5: "ended"}
    began = int(dialog.get("start_ts") or dialog.get("init_ts") or 0)
    return {
        "state": states.get(int(dialog.get("state", 0)), "unknown"),
        "caller": dialog.get("from_uri") or dialog.get("from") or "",
        "caller_at": _place(dialog.get("caller")),
        "callee": dialog.get("to_uri") or dialog.get("to") or "",
        "callee_at": _place(dialog.get("callee")),
        "seconds": max(0, round(time.time() - began)) if began else 0,
        "call_id": dialog.get("call-id", ""),
    }


def _place(party: dict[str, Any] | None) -> str:
    """Address and port of a party's contact: the combination network address of a phone of ours."""
    contact = (party or {}).get("contact") or ""
    return str(contact).partition("sip:")[2].rpartition("@")[2].partition(";")[0].rstrip(">")


def _print(
    rows: list[dict[str, Any]], columns: tuple[str, ...], output: str, nothing: str, indent: int | None = 2
) -> None:
    if output == "json":
        click.echo(json.dumps(rows, indent=indent))
        return
    if not rows:
        click.echo(nothing)
        return
    table = console.table({column.replace("_", " "): "left" for column in columns})
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    console.write(table)
