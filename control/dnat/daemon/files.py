"""What a daemon keeps in small files."""

from __future__ import annotations

from pathlib import Path


def replace(path: Path, octets: bytes) -> None:
    """Write a file anew, in one step for whoever reads it. Raises OSError."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(octets)
    fresh.replace(path)
