"""Dependencies point one way (docs/architecture.md): pure code imports no I/O, only one module imports bcc."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import dnat

PACKAGE = Path(dnat.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))

IMPURE = {
    "asyncio",
    "socket",
    "selectors",
    "threading",
    "subprocess",
    "random",
    "secrets",
    "time",
    "logging",
    "os",
}
ALLOWED = {
    "types": set(),
    "errors": set(),
    "files": set(),
    "leases": {"types", "errors", "leases"},
    "pap": {"types", "errors", "leases", "pap"},
    "store": {"types", "errors", "files", "leases", "pap", "store"},
    "dataplane": {"types", "errors", "dataplane", "system"},
    "system": {"types", "errors", "files", "system"},
}


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "dnat"}
    return names


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_part_may(path: Path) -> None:
    part = _part(path)
    imports = _imports(path)
    if part in ALLOWED:
        own = {name.split(".")[1] for name in imports if name.startswith("dnat.")}
        assert own <= ALLOWED[part], f"{part} must not import {own - ALLOWED[part]}"
    if part in ("pap", "leases", "types"):
        foreign = {name.split(".")[0] for name in imports} - {"dnat"}
        assert foreign <= set(sys.stdlib_module_names), f"pure code imports {foreign - set(sys.stdlib_module_names)}"
        assert not foreign & IMPURE, f"pure code imports {foreign & IMPURE}"
    if any(name.split(".")[0] == "bcc" for name in imports):
        assert path.relative_to(PACKAGE) == Path("dataplane/compile.py")
    if any(name.split(".")[0] == "nftables" for name in imports):
        assert path.relative_to(PACKAGE).parts[0] == "system"
