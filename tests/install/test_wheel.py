"""A wheel holds all that a machine needs, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from machine import REPOSITORY


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", target, REPOSITORY]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def _tracked(*paths: str) -> set[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *paths],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    return {Path(name) for name in listed.stdout.splitlines() if (REPOSITORY / name).exists()}


def test_every_module_is_in_it(names: set[str]) -> None:
    assert {str(path.relative_to("control")) for path in _tracked("control")} <= names


def test_every_source_for_the_kernel_is_in_it(names: set[str]) -> None:
    sources = {f"dnat/{path}" for path in _tracked("ebpf") if path.suffix in (".c", ".h")}
    assert sources
    assert sources <= names


def test_nothing_else_is_in_it(names: set[str]) -> None:
    foreign = {name for name in names if not name.startswith(("dnat/", "dnat-"))}
    assert not foreign
    assert not {name for name in names if "__pycache__" in name or "/tests/" in name}


def test_it_has_a_command(names: set[str]) -> None:
    assert any(name.endswith("entry_points.txt") for name in names)
