"""The server's clock does not jump when the machine's does."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest

from dnat.daemon.clock import SteadyClock


@dataclass
class Machine:
    wall: float = 1_800_000_000.0
    passed: float = 100.0

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.passed += seconds

    def clock(self, path: Path | None, boot: Path) -> SteadyClock:
        return SteadyClock(path, lambda: self.wall, lambda: self.passed, boot)


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    path = tmp_path / "boot_id"
    path.write_text("one\n")
    return path


@pytest.mark.parametrize("jump", [3600.0, -86400.0, 1e9])
def test_the_wall_clock_is_set(tmp_path: Path, boot: Path, jump: float, caplog: pytest.LogCaptureFixture) -> None:
    machine, path = Machine(), tmp_path / "run/clock.json"
    clock = machine.clock(path, boot)
    began = clock()
    machine.wait(10)
    machine.wall += jump
    assert clock() == began + 10
    with caplog.at_level(logging.WARNING):
        clock.watch()
        clock.watch()
    assert len(caplog.records) == 1
    assert f"{jump:+.0f} s" in caplog.text
    restarted = machine.clock(path, boot)
    assert restarted() == began + 10, "a daemon that was killed goes on by the same clock"
    path.unlink()
    assert machine.clock(path, boot)() == began + 10 + jump, "after down the clock is read again"


def test_another_boot_reads_the_clock_again(tmp_path: Path, boot: Path) -> None:
    machine, path = Machine(), tmp_path / "clock.json"
    machine.clock(path, boot)
    boot.write_text("two\n")
    machine.passed, machine.wall = 5.0, machine.wall + 300
    assert machine.clock(path, boot)() == machine.wall


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[]", b'{"boot": 1, "offset": "x"}'])
def test_a_damaged_file_is_made_anew(tmp_path: Path, boot: Path, content: bytes) -> None:
    machine, path = Machine(), tmp_path / "clock.json"
    path.write_bytes(content)
    assert machine.clock(path, boot)() == machine.wall
    machine.wall += 50
    assert machine.clock(path, boot)() == machine.wall - 50


def test_a_place_that_cannot_be_written(tmp_path: Path, boot: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    machine = Machine()
    assert machine.clock(tmp_path / "file" / "clock.json", boot)() == machine.wall
    assert "clock again" in caplog.text
