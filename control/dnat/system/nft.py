"""The nftables tables of dnat's own: each is committed whole, in one transaction. No other table is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dnat.errors import PlatformError
from dnat.system.journal import Entry, Journal
from dnat.system.nft_json import FAMILY, Json, Table, comparable
from dnat.system.router_rules import TABLE as ROUTER_TABLE

KIND = "nft table"


def ensure_journalled(journal: Journal, table: Table, wanted: Sequence[Json]) -> list[str]:
    """`ensure_table`, and `undo` takes the table away."""
    journal.add(KIND, str(table), table=table.name)
    return ensure_table(table, wanted)


def ensure_table(table: Table, wanted: Sequence[Json]) -> list[str]:
    """Make the table hold exactly ``wanted``; returns what was changed, in words. Raises PlatformError."""
    library = _library()
    current = _listing(library, table)
    if current is not None and comparable(current) == comparable(wanted):
        return []
    # Deleting what was just added works whether the table was there or not, and all of it is one transaction.
    emptied = [{"add": table.json}, {"delete": table.json}, {"add": table.json}]
    _commit(library, table, [*emptied, *({"add": one} for one in wanted)])
    return [f"{'made' if current is None else 'replaced'} the {table}"]


def remove_table(table: Table) -> bool:
    """Whether it was there. Raises PlatformError."""
    library = _library()
    if _listing(library, table) is None:
        return False
    _commit(library, table, [{"delete": table.json}])
    return True


def base_chains() -> list[Json]:
    """What nft lists of the chains that packets of this network namespace pass first, whoever made them.

    Raises PlatformError.
    """
    listed = _run(_library(), [{"list": {"chains": None}}], "list chains")
    return [one["chain"] for one in listed if "chain" in one and "hook" in one["chain"]]


def undo(entry: Entry) -> None:
    """Handler of journal entries of this kind."""
    remove_table(Table(entry.facts.get("table", ROUTER_TABLE.name)))


def _library() -> Any:
    try:
        import nftables

        library = nftables.Nftables()
    except (ImportError, OSError) as error:
        raise PlatformError(f"python-nftables is missing ({error}): apt install python3-nftables") from error
    library.set_json_output(True)
    library.set_stateless_output(True)
    return library


def _listing(library: Any, table: Table) -> list[Json] | None:
    """The objects of a table; None if there is no such table."""
    tables = _run(library, [{"list": {"tables": {"family": FAMILY}}}], "list tables")
    if not any(one.get("table", {}).get("name") == table.name for one in tables):
        return None
    return _run(library, [{"list": table.json}], f"list the {table}")


def _commit(library: Any, table: Table, commands: Sequence[Json]) -> None:
    _run(library, commands, f"take the {table}")


def _run(library: Any, commands: Sequence[Json], what: str) -> list[Json]:
    code, output, error = library.json_cmd({"nftables": list(commands)})
    if code != 0:
        reason = " ".join(error.split()) or "no reason given"
        raise PlatformError(f"nftables refused to {what}: {reason}")
    listed: list[Json] = output["nftables"] if output else []
    return listed
