"""``dnatctl key``: the secrets that hosts and server share."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from dnat.cli import console
from dnat.cli.console import output_option
from dnat.client import Client
from dnat.errors import NotRunningError
from dnat.instance import Instance


@click.group()
def key() -> None:
    """Keys with which hosts and server recognise each other.

    How, says docs/pap.md, section 9.

    \b
    On the server:  sudo dnatctl key add phone1 > phone1.key
    On the host:    sudo dnatctl key install < phone1.key
    """


@key.command()
@click.argument("name")
@click.option("--host-id", metavar="HEX", help="Bind the key to this host now, not to the first that uses it.")
@output_option
def add(name: str, host_id: str | None, output: str) -> None:
    """Make a key called NAME and print it. (server)

    It is a secret, to be carried to its host.

    \b
    Example:  sudo dnatctl key add phone1 > phone1.key
    """
    answer = _call("key_add", name=name, host_id=host_id)
    click.echo(json.dumps(answer) if output == "json" else answer["key"])


@key.command()
@click.argument("file", type=click.File("rb"), default="-")
def install(file: Any) -> None:
    """Take up the key in FILE as this host's. (host)

    By default from standard input. Works before the first `up`, and while dnat is up.

    \b
    Example:  sudo dnatctl key install < phone1.key
    """
    from dnat import key_file
    from dnat.system.netns import require_root

    require_root()
    if file.fileno() == sys.stdin.fileno() and file.isatty():
        click.echo("paste the key, then Enter: ", nl=False, err=True)
    text = file.read(4096).partition(b"\n")[0].decode(errors="replace")
    parsed = key_file.from_text(text)
    try:
        _call("key_install", text=text)
    except NotRunningError:
        key_file.save(Instance.current().key_file, parsed)
    click.echo(f"this host uses key {parsed.label} from now on")


@key.command("list")
@output_option
def list_keys(output: str) -> None:
    """List the keys, never their secrets.

    Of a server all of them, of a host its own.

    \b
    Example:  sudo dnatctl key list
    """
    answer = _call("key_list")
    if output == "json":
        click.echo(json.dumps(answer, indent=2))
        return
    if answer["own"]:
        click.echo(f"this host uses key {answer['own']}")
    if answer["keys"]:
        console.write(_table(answer["keys"]))
    elif not answer["own"]:
        click.echo("no keys")


@key.command()
@click.argument("keys", nargs=-1, metavar="[KEY...]")
@click.option("--all", "everybody", is_flag=True, help="Every key in use.")
def rotate(keys: tuple[str, ...], everybody: bool) -> None:
    """Replace keys by new ones, without an interruption.

    Both are good while the host changes over. On a server KEY is a name or identifier, and the host changes at its next
    renewal. On a host, without KEY, it changes at once.

    \b
    Example:  sudo dnatctl key rotate --all
    """
    changed = _call("key_rotate", keys=list(keys), everybody=everybody)["keys"]
    if not keys and not everybody:
        click.echo("a new key is being agreed on; see: dnatctl key list")
    else:
        click.echo(f"{len(changed)} hosts agree on a new key with their next renewal")


@key.command()
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
def revoke(keys: tuple[str, ...]) -> None:
    """End keys at once, and keep their hosts out. (server)

    What these lease is taken back. KEY is a name or identifier. To let such a host in again: `dnatctl key forget`.

    \b
    Example:  sudo dnatctl key revoke phone1
    """
    answer = _call("key_revoke", keys=list(keys))
    click.echo(f"revoked {_names(answer['keys'])}; {answer['leases']} leases were taken back")


@key.command()
@click.argument("keys", nargs=-1, metavar="[KEY...]")
def forget(keys: tuple[str, ...]) -> None:
    """Remove every trace of keys.

    Their hosts are again hosts without one. On a server KEY is a name or identifier; on a host, without KEY, its own
    key is removed.

    \b
    Example:  sudo dnatctl key forget phone1
    """
    try:
        answer = _call("key_forget", keys=list(keys))
    except NotRunningError:
        if keys:
            raise
        Instance.current().key_file.unlink(missing_ok=True)
    click.echo(f"forgot {_names(answer['keys'])}" if keys else "this host has no key any more")


def _call(method: str, **parameters: Any) -> Any:
    with Client(Instance.current().socket) as client:
        return client.call(method, **parameters)


def _names(records: list[dict[str, Any]]) -> str:
    return ", ".join(f"{record['name']} ({record['id']})" for record in records)


def _table(records: list[dict[str, Any]]) -> Any:
    table = console.table(dict.fromkeys(("name", "key", "state", "origin", "host", "since"), "left"))
    for record in records:
        state = record["state"] + (", rotating" if record["rotating"] else "")
        if record["until"] is not None:
            state += f" for {max(0, round(record['until'] - time.time()))} s"
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(record["created_at"]))
        table.add_row(record["name"], record["id"], state, record["origin"], record["host_id"] or "–", since)
    return table
