"""Sorting and filtering of what ``show`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dnat.errors import UsageError

Row = dict[str, Any]


def select(
    document: dict[str, Any], sections: Sequence[str], filters: Sequence[str], sort: str | None
) -> dict[str, Any]:
    """The document with only those rows of ``sections`` that pass every filter, in the order of the key ``sort``.

    A filter is ``KEY=VALUE``; ``port=N`` passes rows whose range holds the port. Sections whose rows lack a key are
    empty under a filter, and stay in their order under a sort. Raises UsageError for a key that no row can have.
    """
    parsed = [_parse(text) for text in filters]
    known = {key for name in sections for key in _keys(document[name])} | {"port"}
    for key in [key for key, _ in parsed] + ([sort.removeprefix("-")] if sort else []):
        if key not in known and known != {"port"}:
            raise UsageError(f'there is no column "{key}" here; there are: {", ".join(sorted(known))}')
    chosen = dict(document)
    for name in sections:
        rows = document[name]
        if isinstance(rows, dict):
            rows = {key: value for key, value in rows.items() if all(_passes({"reason": key}, one) for one in parsed)}
            if sort:
                by_count = sort.removeprefix("-") == "packets"
                ordered = sorted(rows.items(), key=lambda item: item[1] if by_count else item[0])
                rows = dict(reversed(ordered) if sort.startswith("-") else ordered)
        else:
            rows = [row for row in rows if all(_passes(row, one) for one in parsed)]
            if sort:
                rows = sorted(rows, key=lambda row: _order(row, sort.removeprefix("-")), reverse=sort.startswith("-"))
        chosen[name] = rows
    return chosen


def _parse(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key or (key == "port" and not value.isdecimal()):
        raise UsageError(f'"{text}" is no filter; write it as protocol=udp or port=5060')
    return key, value


def _keys(rows: Any) -> set[str]:
    return {"reason", "packets"} if isinstance(rows, dict) else {key for row in rows for key in row}


def _passes(row: Row, wanted: tuple[str, str]) -> bool:
    key, value = wanted
    if key == "port" and "first" in row:
        return value.isdecimal() and row["first"] <= int(value) <= row["last"]
    if key == "reason" and "reason" in row:
        return value in row["reason"]
    return key in row and str(row[key]) == value


def _order(row: Row, key: str) -> tuple[bool, bool, Any]:
    key = "first" if key == "port" and "first" in row else key
    value = row.get(key)
    return value is None, isinstance(value, str), value if value is not None else 0
