"""``dnatctl show``: what this instance holds and does, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from dnat.cli import console
from dnat.cli.console import Content, output_option
from dnat.cli.rows import select
from dnat.cli.watching import repeat, watch_options
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
@watch_options
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

    def look() -> dict[str, Any]:
        with Client(Instance.current().socket) as client:
            return select(client.call("show"), (section,) if section else _SECTIONS, filters, sort)

    def tell(document: dict[str, Any]) -> None:
        _show(document, section, output, sort, indent=None if watch else 2)

    repeat(look, tell, output, watch, count)


def _show(document: dict[str, Any], section: str | None, output: str, sort: str | None, indent: int | None) -> None:
    if output == "json":
        click.echo(json.dumps({section: document[section]} if section else document, indent=indent))
        return
    if section is None:
        out, roles = console.output(), ", ".join(document["roles"])
        out.print(f"[bold]{document['instance']}[/]  {roles}  external {', '.join(document['external_addresses'])}")
        if router := document.get("router"):
            why = f" ({router['reason']})" if router["reason"] else ""
            out.print(f"{router['lan']} to {router['wan']} by {router['path'].upper()}{why}", highlight=False)
        if (containers := document.get("containers")) and containers["masquerader"]:
            out.print(containers_said(containers), highlight=False)
    for name in (section,) if section else _SECTIONS:
        rows = document[name] if sort or name == "counters" else sorted(document[name], key=_ORDERS[name])
        table = _TABLES[name](rows)
        if section or table.row_count:
            console.write(table)


def containers_said(containers: dict[str, Any]) -> str:
    """How the traffic of containers and virtual machines leaves, in a sentence."""
    if containers["translated"]:
        return f"containers and virtual machines speak from ports of this host, by its local ports {_span(containers)}"
    return f"containers and virtual machines leave by the router's masquerading: {containers['reason']}"


def _span(row: dict[str, Any]) -> str:
    return str(row["first"]) if row["first"] == row["last"] else f"{row['first']}-{row['last']}"


def _left(seconds: int) -> str:
    return "never expires" if seconds > NEVER else f"{seconds} s"


def _leases(rows: list[dict[str, Any]]) -> Any:
    with_host = any("host" in row for row in rows)
    columns: dict[str, Content] = {
        "address": "left",
        "ports": "left",
        "protocol": "left",
        "purpose": "left",
        "expires in": "right",
    }
    if with_host:
        columns["host"] = "left"
    table = console.table(columns | {"id": "left"}, "leases")
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
    table = console.table(
        {"protocol": "left", "local port": "right", "combination address": "left", "idle": "right", "": "left"},
        "bindings",
    )
    for row in rows:
        outside, kind = f"{row['address']}:{row['port']}", "static" if row["static"] else ""
        table.add_row(row["protocol"], str(row["local_port"]), outside, f"{row['idle']} s", kind)
    return table


def _owners(rows: list[dict[str, Any]]) -> Any:
    table = console.table({"address": "left", "ports": "left", "protocol": "left", "host": "left"}, "owners")
    for row in rows:
        table.add_row(row["address"], _span(row), row["protocol"], row["host"])
    return table


def _lost(rows: list[dict[str, Any]]) -> Any:
    columns: dict[str, Content] = dict.fromkeys(("address", "ports", "purpose", "at", "reason", "outcome"), "left")
    table = console.table(columns | {"reason": "sentence", "programs": "sentence"}, "lost")
    for row in rows:
        programs = ", ".join(
            f"{each['program']} ({each['pid']}) at {', '.join(map(str, each['ports']))}" for each in row["programs"]
        )
        told = (row[name] for name in ("purpose", "at", "reason", "outcome"))
        table.add_row(row["address"], _span(row), *told, programs)
    return table


def _counters(counters: dict[str, int]) -> Any:
    table = console.table({"packets": "right", "reason": "left"}, "counters")
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
