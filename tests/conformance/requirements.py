"""The requirements of ``requirements.toml``, and the table that ``docs/conformance.md`` makes of them."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "conformance.md"

PASSES = "passes"
FAILS = "**fails**"

_HEAD = """\
# Conformance

What the documents ask of a NAT, and whether dnat does it. Written by `make conformance`, which tests every
requirement on the wire: real daemons and programs in a lab of network namespaces. The statements are ours,
shortened; the documents say it exactly.

dnat is a NAT in parts: what hosts do for themselves (`host`), the router that sends packets to whom their ports
belong (`router`), and the leases of ports (`server`). *Applies to* says which of them fulfil the requirement.

A result *in part* says what is not as asked. Where there is no test, the reason is there instead.
"""

_STUN = """
## From outside

`tests/conformance/test_stun.py` asks a STUN server with two addresses (coturn), by the behaviour discovery client
that comes with it (RFC 5780). From native and from translated ports it finds endpoint-independent mapping and
endpoint-independent filtering, and address-dependent filtering where that is configured.
"""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One row."""

    document: str
    """As ``RFC 4787``."""
    name: str
    """As ``REQ-3a``, or a section's number."""
    level: str
    says: str
    on: tuple[str, ...]
    """Roles; empty: no test."""
    without: str
    """Why there is no test."""
    but: str
    """What is not as asked."""

    @property
    def module(self) -> str:
        return f"test_{self.document.lower().replace(' ', '')}.py"

    @property
    def function(self) -> str:
        return f"test_{self.label.lower().replace('-', '_').replace('.', '_').replace(' ', '_')}"

    @property
    def test(self) -> str:
        """As the results of a run are named."""
        return f"{self.module}::{self.function}"

    @property
    def label(self) -> str:
        return self.name if self.name.startswith("REQ") else f"section {self.name}"


def requirements() -> list[Requirement]:
    """All, in the order of the documents."""
    rows = []
    for document, table in _tables():
        for name, row in table.items():
            if isinstance(row, dict):
                known = {"level", "says", "on", "without", "but"}
                if row.keys() - known:
                    raise ValueError(f"{document}, {name}: {row.keys() - known}")
                rows.append(
                    Requirement(
                        document,
                        name,
                        row["level"],
                        row["says"],
                        tuple(row.get("on", ())),
                        row.get("without", ""),
                        row.get("but", ""),
                    )
                )
    return rows


def written() -> set[str]:
    """The tests there are, by reading the source."""
    return {
        f"{path.name}::{node.name}"
        for path in HERE.glob("test_rfc*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def render(passed: Mapping[str, bool]) -> str:
    """The document; ``passed`` tells of every test whether it did."""
    lines = [_HEAD]
    for document, table in _tables():
        lines += [f"## {document}: {table['title']}", ""]
        lines += ["| requirement | level | asks for | applies to | result | test |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        for row in requirements():
            if row.document == document:
                lines.append(_row(row, passed))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n" + _STUN


def _row(row: Requirement, passed: Mapping[str, bool]) -> str:
    if row.without:
        result, test, on = row.without, "", "–"
    else:
        result = PASSES if passed[row.test] else FAILS
        if passed[row.test] and row.but:
            result = f"in part: {row.but}"
        test, on = f"`{row.function}`", ", ".join(row.on)
    return f"| {row.label} | {row.level} | {row.says} | {on} | {result} | {test} |"


def _tables() -> Iterator[tuple[str, dict[str, object]]]:
    with (HERE / "requirements.toml").open("rb") as file:
        yield from tomllib.load(file).items()
