"""``dnatctl whois`` and ``history``: who held which ports, and when."""

from __future__ import annotations

import csv
import json
import re
import sys
import time
from datetime import datetime
from typing import Any

import click

from dnat.cli import console, words
from dnat.cli.console import output_option
from dnat.client import Client
from dnat.errors import UsageError
from dnat.instance import Instance

FIELDS = ("address", "first", "last", "protocol", "purpose", "host", "host_id", "name", "lease", "since", "until")
_ENDPOINT = re.compile(r"(?P<address>[0-9.]+):(?P<port>[0-9]{1,5})")


@click.command()
@click.argument("endpoint", metavar="ADDRESS:PORT")
@click.option("--at", "at", metavar="TIME", help="As 2026-11-22T10:00, local time unless it says +HH:MM or Z.  [now]")
@click.option("--protocol", type=click.Choice(["tcp", "udp", "icmp"]), help="Only leases that cover this protocol.")
@output_option
def whois(endpoint: str, at: str | None, protocol: str | None, output: str) -> None:
    """Say which host held an external address and port at a time. (server)

    Exit code 3 when nobody did.

    \b
    Example:  sudo dnatctl whois 198.51.100.1:40012 --at 2026-11-22T10:00
    """
    found = _ENDPOINT.fullmatch(endpoint)
    port = int(found["port"]) if found else 0
    if found is None or not 1 <= port <= 65535:
        raise UsageError(f'"{endpoint}" is no address and port; write them as 198.51.100.1:40012')
    moment = _moment(at) if at else time.time()
    rows = _ask(since=moment, until=moment, address=words.address(found["address"]), port=port)
    if protocol:
        rows = [row for row in rows if row["protocol"] in ("any", protocol)]
    if output == "json":
        click.echo(json.dumps([_readable(row) for row in rows], indent=2))
    elif rows:
        _print(rows)
    if not rows:
        click.echo(f"nobody held {endpoint} at {_iso(moment)}", err=True)
        sys.exit(3)


@click.command()
@click.option("--since", metavar="TIME", help="As 2026-11-22T10:00.  [the beginning]")
@click.option("--until", metavar="TIME", help="[now]")
@click.option("--address", metavar="ADDRESS", help="Only this external address.")
@click.option("-o", "--output", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def history(since: str | None, until: str | None, address: str | None, output: str) -> None:
    """List who held which block of ports when. (server)

    One record per block, none per connection.

    \b
    Example:  sudo dnatctl history --since 2026-11-01 -o csv > november.csv
    """
    rows = _ask(
        since=_moment(since) if since else 0.0,
        until=_moment(until) if until else None,
        address=words.address(address) if address else None,
        port=None,
    )
    if output == "json":
        click.echo(json.dumps([_readable(row) for row in rows], indent=2))
    elif output == "csv":
        writer = csv.DictWriter(sys.stdout, FIELDS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(_readable, rows))
    else:
        _print(rows)


def _ask(**parameters: Any) -> list[dict[str, Any]]:
    with Client(Instance.current().socket) as client:
        rows: list[dict[str, Any]] = client.call("history", **parameters)["tenures"]
    return rows


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text).timestamp()
        _iso(moment)
        return moment
    except (ValueError, OverflowError):
        raise UsageError(f'"{text}" is no time; write it as 2026-11-22T10:00 or 2026-11-22T10:00:00+01:00') from None


def _iso(seconds: float) -> str:
    """With the offset from UTC, so that nobody has to guess."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """The row with times as people and programs read them."""
    until = row["until"]
    return row | {"since": _iso(row["since"]), "until": _iso(until) if until is not None else None}


def _print(rows: list[dict[str, Any]]) -> None:
    columns = ("address", "ports", "protocol", "host", "name", "since", "until")
    table = console.table(dict.fromkeys(columns, "left"))
    for row in map(_readable, rows):
        ports = str(row["first"]) if row["first"] == row["last"] else f"{row['first']}-{row['last']}"
        since, until = row["since"], row["until"] or "now"
        table.add_row(row["address"], ports, row["protocol"], row["host"], row["name"] or "–", since, until)
    console.write(table)
