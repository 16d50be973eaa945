"""``dnatctl show``: what this instance holds and does, for people and for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from dnat.cli.console import output as console_output
from dnat.cli.console import output_option
from dnat.cli.rows import select
from dnat.client import Client
from dnat.instance import Instance

NEVER = 100 * 365 * 86400
"""Seconds left from which on a lease is a permanent one."""
_SECTIONS = ("leases", "bindings", "owners", "lost", "counters")


@click.command()
@click.argument("section", type=click.Choice(_SECTIONS), required=False)
@output_option
@click.option(
    "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only rows like this; port=N: with port N."
)
@click.option("--sort", metavar="KEY", help="Order by this key of the JSON schema; -KEY: downwards.")
@click.option(
    "--watch", type=click.FloatRange(0.1, 3600), metavar="SECONDS", help="Show again and again, until Ctrl-C."
)
@click.option("--count", type=click.IntRange(1), help="With --watch: stop after so many times.")
def show(
    section: str | None, output: str, filters: tuple[str, ...], sort: str | None, watch: float | None, count: int | None
) -> None:
    """Show what this machine leases, translates and counts.

    Leases, bindings, owners, what was lost, and counters, or one SECTION of them. `-o json` prints the documented
    schema (docs/show.md); with --watch a document per line.

    \b
    Examples:  dnatctl show leases --sort expires_in
               dnatctl show owners --filter port=5060
               dnatctl show bindings --filter protocol=udp --watch 2
    """
    shown = 0
    while True:
        with Client(Instance.current().socket) as client:
            document = client.call("show")
        document = select(document, (section,) if section else _SECTIONS, filters, sort)
        if watch is not None and output == "table" and sys.stdout.isatty():
            click.clear()
        _show(document, section, output, sort, indent=None if watch else 2)
        shown += 1
        if watch is None or shown == count:
            return
        sys.stdout.flush()
        time.sleep(watch)


def _show(document: dict[str, Any], section: str | None, output: str, sort: str | None, indent: int | None) -> None:
    if output == "json":
        click.echo(json.dumps({section: document[section]} if section else document, indent=indent))
        return
    console = console_output()
    if section is None:
        roles = ", ".join(document["roles"])
        console.print(f"[bold]{document['instance']}[/]  {roles}  external {', '.join(document['external_addresses'])}")
        if router := document.get("router"):
            why = f" ({router['reason']})" if router["reason"] else ""
            console.print(f"{router['lan']} to {router['wan']} by {router['path'].upper()}{why}", highlight=False)
        if (containers := document.get("containers")) and containers["masquerader"]:
            console.print(containers_said(containers), highlight=False)
    for name in (section,) if section else _SECTIONS:
        rows = document[name] if sort or name == "counters" else sorted(document[name], key=_ORDERS[name])
        table = _TABLES[name](rows)
        if section or table.row_count:
            console.print(table)


def containers_said(containers: dict[str, Any]) -> str:
    """How the traffic of containers and virtual machines leaves, in a sentence."""
    if containers["translated"]:
        return f"containers and virtual machines speak from ports of this host, by its local ports {_span(containers)}"
    return f"containers and virtual machines leave by the router's masquerading: {containers['reason']}"


def _table(title: str, columns: dict[str, str]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for name, justify in columns.items():
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    return table


def _span(row: dict[str, Any]) -> str:
    return str(row["first"]) if row["first"] == row["last"] else f"{row['first']}-{row['last']}"


def _left(seconds: int) -> str:
    return "never expires" if seconds > NEVER else f"{seconds} s"


def _leases(rows: list[dict[str, Any]]) -> Any:
    with_host = any("host" in row for row in rows)
    columns = {
        "address": "left",
        "ports": "left",
        "protocol": "left",
        "purpose": "left",
        "expires in": "right",
    }
    table = _table("leases", columns | ({"host": "left"} if with_host else {}) | {"id": "left"})
    for row in rows:
        host = [row["host"]] if with_host else []
        table.add_row(
            row["address"],
            _span(row),
            row["protocol"],
            row["purpose"],
            _left(row["expires_in"]),
            *host,
            row["id"],
        )
    return table


def _bindings(rows: list[dict[str, Any]]) -> Any:
    table = _table(
        "bindings",
        {"protocol": "left", "local port": "right", "combination address": "left", "idle": "right", "": "left"},
    )
    for row in rows:
        outside, kind = f"{row['address']}:{row['port']}", "static" if row["static"] else ""
        table.add_row(row["protocol"], str(row["local_port"]), outside, f"{row['idle']} s", kind)
    return table


def _owners(rows: list[dict[str, Any]]) -> Any:
    table = _table("owners", {"address": "left", "ports": "left", "protocol": "left", "host": "left"})
    for row in rows:
        table.add_row(row["address"], _span(row), row["protocol"], row["host"])
    return table


def _lost(rows: list[dict[str, Any]]) -> Any:
    columns = ("address", "ports", "purpose", "at", "reason", "outcome", "programs")
    table = _table("lost", dict.fromkeys(columns, "left"))
    for row in rows:
        programs = ", ".join(
            f"{each['program']} ({each['pid']}) at {', '.join(map(str, each['ports']))}" for each in row["programs"]
        )
        told = (row[name] for name in ("purpose", "at", "reason", "outcome"))
        table.add_row(row["address"], _span(row), *told, programs)
    return table


def _counters(counters: dict[str, int]) -> Any:
    table = _table("counters", {"packets": "right", "reason": "left"})
    for name, value in counters.items():
        if value:
            table.add_row(f"{value:,}", name)
    return table


_TABLES: dict[str, Callable[[Any], Any]] = {
    "leases": _leases,
    "bindings": _bindings,
    "owners": _owners,
    "lost": _lost,
    "counters": _counters,
}

_ORDERS: dict[str, Callable[[Any], Any]] = {
    "leases": lambda row: (row["address"], row["first"]),
    "bindings": lambda row: (row["protocol"], row["local_port"]),
    "owners": lambda row: (row["address"], row["first"]),
    "lost": lambda row: row["at"],
}
"""The order of each table when none is asked for."""
