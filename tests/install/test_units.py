"""The units are what systemd understands, and as closed as the documentation says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from machine import REPOSITORY

EXPOSURE = 3.3
"""The most that `systemd-analyze security` may say: 10 is a program without any fence."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as they are installed, with a program to start that is there."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/dnatctl"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in (REPOSITORY / "packaging/systemd").iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace("@PREFIX@", str(tmp_path)))
    return tmp_path


def _analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


def test_systemd_understands_every_line(units: Path) -> None:
    done = _analyze("verify", "--man=no", "--recursive-errors=no", units / "dnat.service", units / "run-dnat-bpf.mount")
    ours = [line for line in done.stderr.splitlines() if "dnat" in line]
    assert (done.returncode, ours) == (0, [])


def test_the_service_is_fenced_in(units: Path) -> None:
    done = _analyze("security", "--offline=yes", "--no-pager", units / "dnat.service")
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure, done.stderr
    assert float(exposure[1]) <= EXPOSURE
