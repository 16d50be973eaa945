"""Places that cannot be written any more while dnat is up: a /run that is full, a disk that turns read-only."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from inside import differences, ip, run, snapshot
from nodes import Machine, eventually
from small import EXTERNAL, Small

from dnat.system import netns

PEER, PLATFORM = 3, 4


def _with(mount: str, *argv: str) -> tuple[str, ...]:
    """A command, and whatever it starts, with a mount of its own."""
    return ("unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *argv)


def _within(machine: Machine, *argv: str) -> tuple[str, ...]:
    """A command that sees the mounts of the machine's daemon."""
    return ("nsenter", f"--mount=/proc/{_daemon(machine)}/ns/mnt", "--", *argv)


def _daemon(machine: Machine) -> int:
    """Its process, whose file may be where nobody else sees it."""
    there = netns.processes([machine.namespace])
    (pid,) = (each for each in there if b"dnat.daemon" in Path(f"/proc/{each}/cmdline").read_bytes())
    return pid


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system as disks have, in a file."""
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    yield image


def test_a_disk_that_turns_read_only(small: Small, disk: Path) -> None:
    """After an error the kernel lets nobody write there: what was granted stands, new leases are refused."""
    mount = f"mount -o loop {disk} /var/lib/dnat"
    small.server.run(*_with(mount, "dnatctl", "up", "--config", small.configure()))
    small.host.dnatctl("up")
    before = small.host.leases()
    # What the kernel does itself with errors=remount-ro.
    small.server.run(*_within(small.server, "mount", "-o", "remount,abort", "/var/lib/dnat"), code=None)
    small.server.run(*_within(small.server, "sh", "-c", "! touch /var/lib/dnat/there 2>&-"))
    refused = small.host.dnatctl("request", code=PEER)
    assert "store" in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert small.host.leases() == before
    assert small.server.leases() and "Traceback" not in small.server.log()


def test_a_run_directory_that_is_full(small: Small) -> None:
    """What is up stays up, and is repaired; what cannot be written down is not done; `down` puts everything back."""
    small.serve()
    host = small.host
    before = snapshot(host.namespace)
    mount = f"mkdir -p {host.runtime} && mount -t tmpfs -o size=64k none {host.runtime}"
    host.run(*_with(mount, "dnatctl", "up"))
    fill = f"! cat /dev/zero > {host.runtime}/filler-$0 2>&-"
    host.run(*_within(host, "sh", "-c", fill, "1"))
    # The file of the leases cannot be replaced, so it goes, and makes room.
    host.run(*_within(host, "dnatctl", "request"))
    host.run(*_within(host, "sh", "-c", fill, "2"))
    leases = small.server.leases()
    refused = host.run(*_within(host, "dnatctl", "map", "udp", "7777"), code=PLATFORM)
    assert "mappings.json cannot be written" in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert small.server.leases() == leases, "no port is leased for a mapping that is none"
    ip(host.namespace, "route del default proto 157")
    eventually(lambda: EXTERNAL in run(host.namespace, "ip", "route", "show", "default"), "the route is back", 20)
    host.run(*_within(host, "dnatctl", "down"))
    assert differences(before, snapshot(host.namespace)) == []
    # And it does not come up where there is no room at all.
    full = f"{mount} && {{ cat /dev/zero > {host.runtime}/filler 2>&- || true; }}"
    refused = host.run(*_with(full, "dnatctl", "up"), code=PLATFORM)
    assert f"{host.runtime}/daemon.pid cannot be written: No space left on device" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert differences(before, snapshot(host.namespace)) == []
