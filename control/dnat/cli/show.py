"""``dnatctl show``: what this instance holds and does, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from dnat.cli.console import output as console_output
from dnat.client import Client
from dnat.instance import Instance

_SECTIONS = ("leases", "bindings", "owners", "counters")


@click.command()
@click.argument("section", type=click.Choice(_SECTIONS), required=False)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def show(section: str | None, output: str) -> None:
    """Show leases, bindings, owners and counters, or one SECTION of them.

    `-o json` prints the documented schema (docs/show.md).
    """
    with Client(Instance.current().socket) as client:
        document = client.call("show")
    if output == "json":
        click.echo(json.dumps({section: document[section]} if section else document, indent=2))
        return
    console = console_output()
    if section is None:
        roles = ", ".join(document["roles"])
        console.print(f"[bold]{document['instance']}[/]  {roles}  external {', '.join(document['external_addresses'])}")
    for name in (section,) if section else _SECTIONS:
        table = _TABLES[name](document[name])
        if section or table.row_count:
            console.print(table)


def _table(title: str, columns: dict[str, str]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for name, justify in columns.items():
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    return table


def _span(row: dict[str, Any]) -> str:
    return str(row["first"]) if row["first"] == row["last"] else f"{row['first']}-{row['last']}"


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
    for row in sorted(rows, key=lambda row: (row["address"], row["first"])):
        host = [row["host"]] if with_host else []
        table.add_row(
            row["address"],
            _span(row),
            row["protocol"],
            row["purpose"],
            f"{row['expires_in']} s",
            *host,
            row["id"],
        )
    return table


def _bindings(rows: list[dict[str, Any]]) -> Any:
    table = _table(
        "bindings",
        {"protocol": "left", "local port": "right", "combination address": "left", "idle": "right", "": "left"},
    )
    for row in sorted(rows, key=lambda row: (row["protocol"], row["local_port"])):
        outside, kind = f"{row['address']}:{row['port']}", "static" if row["static"] else ""
        table.add_row(row["protocol"], str(row["local_port"]), outside, f"{row['idle']} s", kind)
    return table


def _owners(rows: list[dict[str, Any]]) -> Any:
    table = _table("owners", {"address": "left", "ports": "left", "protocol": "left", "host": "left"})
    for row in sorted(rows, key=lambda row: (row["address"], row["first"])):
        table.add_row(row["address"], _span(row), row["protocol"], row["host"])
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
    "counters": _counters,
}
