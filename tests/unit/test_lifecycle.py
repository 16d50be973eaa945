"""``dnatctl status`` and ``up`` beside a daemon that hangs, or that is not up yet."""

from __future__ import annotations

import functools
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from dnat import pid_file
from dnat.cli import lifecycle
from dnat.client import Client
from dnat.errors import NotAnsweringError, NotRunningError
from dnat.instance import Instance
from dnat.system import netns


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """One whose daemon is this process, as far as the lock of the pid file says."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setattr("dnat.instance.RUN_DIRECTORY", Path(directory))
        monkeypatch.setattr(Instance, "current", lambda: Instance("test"))
        monkeypatch.setattr(lifecycle, "Client", functools.partial(Client, timeout=0.1))
        monkeypatch.setattr(netns, "require_root", lambda: None)
        instance = Instance("test")
        instance.run.mkdir()
        with pid_file.lock(instance.pid_file):
            yield instance


@pytest.mark.parametrize("command", ["status", "up"])
@pytest.mark.parametrize("crowded", [False, True])
def test_a_daemon_that_hangs_is_told_from_one_that_ended(instance: Instance, command: str, crowded: bool) -> None:
    """Also where so many wait already that nobody else can connect."""
    instance.journal.write_text("{}")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(instance.socket))
        listening.listen(0)
        waiting = []
        if crowded:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[0].connect(str(instance.socket))
        done = CliRunner().invoke(getattr(lifecycle, command))
        for each in waiting:
            each.close()
    assert isinstance(done.exception, NotAnsweringError)
    assert f"(process {os.getpid()}) does not answer" in str(done.exception)


def test_a_daemon_that_starts_is_told_from_one_that_ended(instance: Instance) -> None:
    instance.journal.write_text("{}")
    done = CliRunner().invoke(lifecycle.status)
    assert isinstance(done.exception, NotRunningError)
    assert "is not up yet" in str(done.exception)
