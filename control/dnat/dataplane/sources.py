"""Where the C sources are: data of the installed package, the top level ``ebpf/`` of a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "ebpf"

SOURCES = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parents[1] / "ebpf"
