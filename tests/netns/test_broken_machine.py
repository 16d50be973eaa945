"""A machine that is not as it should be: damaged or full disks, a kernel without BPF, programs that are missing."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from inside import differences, snapshot
from nodes import Machine, eventually
from small import Small

from dnat.system import netns

PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
PEER, PLATFORM = 3, 4


def _refused(machine: Machine, *argv: str) -> str:
    """What ``up`` says when the machine is at fault; it must not change anything."""
    before = snapshot(machine.namespace)
    said = machine.run(*argv, code=PLATFORM).stderr
    assert len(said.splitlines()) == 1, said
    assert differences(before, snapshot(machine.namespace)) == []
    assert not (Path("/run/dnat/bpf") / machine.namespace).exists()
    return said


def _nothing_but_noise(path: Path) -> None:
    path.write_bytes(random.Random(4).randbytes(20_000))


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _one_page_overwritten(path: Path) -> None:
    octets = bytearray(path.read_bytes())
    octets[4096 + 100 : 8192] = bytes(4096 - 100)
    path.write_bytes(octets)


def _a_row_that_makes_no_sense(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE leases SET first = 70000")
    database.close()


def _of_a_later_version(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()


DAMAGES = (_nothing_but_noise, _cut_off, _one_page_overwritten, _a_row_that_makes_no_sense, _of_a_later_version)


def test_a_damaged_lease_store_is_left_as_it_is(small: Small) -> None:
    """The server says so and does not serve: with an empty table it would give ports twice."""
    small.serve()
    small.host.dnatctl("up")
    small.server.dnatctl("down")
    store = Path("/var/lib/dnat") / small.server.namespace / "leases.sqlite"
    sound = store.read_bytes()
    assert not Path(f"{store}-wal").exists()
    for damage in DAMAGES:
        store.write_bytes(sound)
        damage(store)
        damaged = store.read_bytes()
        said = _refused(small.server, "dnatctl", "up", "--config", str(small.configuration))
        assert str(store) in said
        assert "version" in said if damage is _of_a_later_version else "damaged" in said and f"mv {store}" in said
        assert store.read_bytes() == damaged, damage.__name__
    store.write_bytes(sound)
    small.serve()
    assert len(small.server.leases()) == 2


def test_a_damaged_lease_store_keeps_its_log(small: Small) -> None:
    """After a crash the latest leases are in the write-ahead log alone; that must not be lost either."""
    small.serve()
    small.host.dnatctl("up")
    small.server.dnatctl("down")
    small.serve()
    small.host.request("--ports", "2")
    small.server.kill()
    store = Path("/var/lib/dnat") / small.server.namespace / "leases.sqlite"
    log = Path(f"{store}-wal")
    sound = store.read_bytes(), log.read_bytes()
    assert sound[1]
    store.write_bytes(random.Random(5).randbytes(len(sound[0])))
    damaged = store.read_bytes()
    said = _refused(small.server, "dnatctl", "up", "--config", str(small.configuration))
    assert "damaged" in said
    assert (store.read_bytes(), log.read_bytes()) == (damaged, sound[1])
    store.write_bytes(sound[0])
    small.serve()
    assert len(small.server.leases()) == 3


def _on_a_disk_of(size: str, options: str, *argv: str) -> tuple[str, ...]:
    """Run a program with a /var/lib/dnat of its own."""
    mount = f'mount -t tmpfs -o size={size},{options} none /var/lib/dnat && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", mount, "sh", *argv)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while file.write(bytes(4096)):
            pass


def test_a_disk_that_cannot_be_written(small: Small) -> None:
    up = ("dnatctl", "up", "--config", small.configure())
    said = _refused(small.server, *_on_a_disk_of("1m", "ro", *up))
    assert "/var/lib/dnat" in said and "ead-only" in said
    small.serve()
    said = _refused(small.host, *_on_a_disk_of("1m", "ro", "dnatctl", "up"))
    assert "host-id" in said and "ead-only" in said


def test_a_disk_that_is_full(small: Small) -> None:
    """The server promises nothing that it could not write down, says so, and goes on when there is room again."""
    small.server.run(*_on_a_disk_of("256k", "rw", "dnatctl", "up", "--config", small.configure()))
    small.host.dnatctl("up")
    disk = Path(f"/proc/{small.server.pid()}/root/var/lib/dnat")
    _fill(disk / "filler")
    # There is some room left in its log.
    for _ in range(40):
        leases = small.server.leases()
        done = small.host.dnatctl("request", "--ports", "1", code=None)
        if done.returncode != 0:
            break
    assert done.returncode == PEER
    assert "refused" in done.stderr and "store" in done.stderr
    eventually(lambda: small.server.leases() == leases, "the table is that of the store")
    assert small.host.leases() == [{k: v for k, v in lease.items() if k != "host"} for lease in leases]
    (disk / "filler").unlink()
    eventually(lambda: small.host.dnatctl("request", code=None).returncode == 0, "the server grants again", seconds=10)


def test_a_server_that_starts_on_a_full_disk(small: Small) -> None:
    """It serves what it has: leases stand, new ones are refused until there is room."""
    waiting = _on_a_disk_of("512k", "rw", "sh", "-c", "echo ready; exec cat")
    with netns.popen(waiting, small.server.namespace, **PIPES) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        holder.stdout.readline()
        on_the_disk = ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--", "dnatctl", "up", "--config")
        small.server.run(*on_the_disk, small.configure())
        small.host.dnatctl("up")
        leases = small.server.leases()
        for end in (small.server.kill, lambda: small.server.dnatctl("down")):
            filler = Path(f"/proc/{holder.pid}/root/var/lib/dnat/filler")
            end()
            _fill(filler)
            small.server.run(*on_the_disk, small.configure())
            assert small.server.leases() == leases
            assert "store" in small.host.dnatctl("request", "--ports", "1", code=PEER).stderr
            filler.unlink()
            eventually(lambda: small.host.dnatctl("request", code=None).returncode == 0, "granted again", seconds=20)
            leases = small.server.leases()
        small.server.dnatctl("down")
        holder.stdin.close()


def test_a_host_whose_run_directory_is_full_goes_on(small: Small) -> None:
    """What it cannot save it asks the server for after a restart."""
    small.serve()
    directory = small.host.runtime
    directory.mkdir(parents=True, exist_ok=True)
    small.host.run("mount", "-t", "tmpfs", "-o", "size=128k", "none", str(directory))
    try:
        small.host.dnatctl("up")
        _fill(directory / "filler")
        small.host.request("--ports", "2")
        leases = small.host.leases()
        small.host.kill()
        (directory / "filler").unlink()
        small.host.dnatctl("up")
        assert small.host.leases() == leases
    finally:
        small.host.dnatctl("down", code=None)
        # The daemon's last act is to close its log.
        small.host.run("umount", "--lazy", str(directory))


SECCOMP = """
import ctypes, os, platform, struct, sys
from dnat.dataplane.bpf import _SYSCALL
number, error = _SYSCALL[platform.machine()], int(sys.argv[1])
load, equal, ret = 0x20, 0x15, 0x06
program = b"".join(struct.pack("HBBI", *step) for step in (
    (load, 0, 0, 0), (equal, 0, 1, number), (ret, 0, 0, 0x00050000 | error), (ret, 0, 0, 0x7FFF0000)))
buffer = ctypes.create_string_buffer(program)
header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, header, 0, 0):
    sys.exit(os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Runs a program under a seccomp filter that answers bpf(2) with an errno, as kernels and containers without BPF do."""


@pytest.mark.parametrize(
    ("error", "expected"), [(1, "refuses BPF"), (38, "CONFIG_BPF_SYSCALL")], ids=["refused", "not there"]
)
def test_a_kernel_without_bpf(small: Small, error: int, expected: str) -> None:
    small.serve()
    said = _refused(small.host, sys.executable, "-c", SECCOMP, str(error), "dnatctl", "up")
    assert expected in said
    assert small.server.leases() == [], "what had been leased is given back"


@pytest.fixture
def without(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """An environment in which Python finds no module, or the shell no program, of that name."""

    def environment(name: str) -> dict[str, str]:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError(\"No module named '{name}'\")\n")
        places = []
        for number, directory in enumerate(os.environ["PATH"].split(":")):
            if not (Path(directory) / name).exists():
                places.append(directory)
                continue
            places.append(str(shadow := tmp_path / f"bin{number}"))
            shadow.mkdir()
            for program in Path(directory).iterdir():
                if program.name != name:
                    (shadow / program.name).symlink_to(program)
        return os.environ | {"PYTHONPATH": str(tmp_path), "PATH": ":".join(places)}

    return environment


def test_bcc_is_missing(small: Small, without: Callable[[str], dict[str, str]]) -> None:
    small.serve()
    before = snapshot(small.host.namespace)
    dnatctl = str(Path(sys.executable).with_name("dnatctl"))
    said = small.host.run(dnatctl, "up", code=PLATFORM, env=without("bcc")).stderr
    assert "python3-bpfcc" in said
    assert differences(before, snapshot(small.host.namespace)) == []


def test_tcpdump_is_missing(small: Small, without: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    """Only a capture into a file needs it."""
    dnatctl = str(Path(sys.executable).with_name("dnatctl"))
    environment = without("tcpdump")
    assert shutil.which("tcpdump", path=environment["PATH"]) is None
    capture = (dnatctl, "capture", "-i", "eth0", "--seconds", "0.2")
    said = small.host.run(*capture, "-w", str(tmp_path / "x.pcap"), code=PLATFORM, env=environment).stderr
    assert "apt-get install tcpdump" in said
    small.host.run(*capture, env=environment)
