"""Which programs have ports open: what the kernel lists under /proc, for this network namespace."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dnat.types import PortRange, Protocol

# proc_net_tcp(5): "sl local_address rem_address st …", addresses and ports in hexadecimal, the inode in column 10.
_LOCAL, _INODE = 1, 9


@dataclass(frozen=True, slots=True)
class Program:
    """A process that has ports open."""

    name: str
    pid: int
    ports: tuple[int, ...]
    """In order, each once."""


def of(ports: PortRange, protocol: Protocol) -> tuple[Program, ...]:
    """The programs that have local TCP or UDP ports of a range open, by process id.

    Sockets of processes that may not be looked into (it takes CAP_SYS_PTRACE) are all of one called "?", with id 0.
    """
    inodes: dict[str, int] = {}
    for kind in (Protocol.UDP, Protocol.TCP):
        if kind.overlaps(protocol):
            inodes |= {inode: port for port, inode in _open(kind) if port in ports}
    found: list[Program] = []
    known: set[str] = set()
    for process in Path("/proc").iterdir() if inodes else ():
        if process.name.isdecimal() and (theirs := inodes.keys() & set(_sockets(process))):
            known |= theirs
            found.append(_program(_name(process), int(process.name), theirs, inodes))
    if hidden := inodes.keys() - known:
        found.append(_program("?", 0, hidden, inodes))
    return tuple(sorted(found, key=lambda program: program.pid))


def _program(name: str, pid: int, theirs: Collection[str], inodes: Mapping[str, int]) -> Program:
    return Program(name, pid, tuple(sorted({inodes[inode] for inode in theirs})))


def _open(kind: Protocol) -> Iterator[tuple[int, str]]:
    """Local port and inode of each socket."""
    # Sockets of IPv6 serve IPv4, too; a kernel may be without them.
    for path in (Path("/proc/thread-self/net", kind.label + version) for version in ("", "6")):
        for line in path.read_text(encoding="ascii").splitlines()[1:] if path.exists() else ():
            columns = line.split()
            # A socket that waits out its time belongs to nobody.
            if columns[_INODE] != "0":
                yield int(columns[_LOCAL].rpartition(":")[2], 16), columns[_INODE]


def _sockets(process: Path) -> Iterator[str]:
    """Inodes of a process's sockets; none when it has ended meanwhile."""
    try:
        for descriptor in (process / "fd").iterdir():
            try:
                match = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
            except OSError:
                continue
            if match:
                yield match[1]
    except OSError:
        return


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "?"
