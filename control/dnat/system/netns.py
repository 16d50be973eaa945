"""Network namespaces: which one this is, making and removing named ones, running things inside.

Named namespaces are bind mounts under /run/netns, exactly as iproute2 makes them, so ``ip netns`` sees ours
and we see its. Programs are started by setns(2) alone: ``ip netns exec`` would also mount a fresh /sys and
hide what is pinned there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dnat.errors import PlatformError, UsageError

NETNS_DIRECTORY = Path("/run/netns")
DEFAULT_INSTANCE = "default"

_OWN_NAMESPACE = Path("/proc/thread-self/ns/net")
"""The calling thread's namespace; /proc/self would be the main thread's."""

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED = 4096, 16384, 1 << 20
_MNT_DETACH = 2
_CAP_NET_ADMIN = 12

_libc = ctypes.CDLL(None, use_errno=True)


def require_root() -> None:
    """Raise PlatformError unless this process may configure the network."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    if not int(effective, 16) >> _CAP_NET_ADMIN & 1:
        raise PlatformError("this changes addresses, routes and filters, so it needs root: run it with sudo")


def instance_name() -> str:
    """Name of the calling thread's namespace: ``default``, its name under /run/netns, or ``netns-INODE``."""
    if _is_the_machines_own():
        return DEFAULT_INSTANCE
    here = _identity(_OWN_NAMESPACE)
    for name in names():
        if name != DEFAULT_INSTANCE:
            with contextlib.suppress(FileNotFoundError):
                if _identity(NETNS_DIRECTORY / name) == here:
                    return name
    return f"netns-{here[1]}"


def inode() -> int:
    """The number of the calling thread's namespace, as ``stat -L /proc/self/ns/net`` has it."""
    return _identity(_OWN_NAMESPACE)[1]


def names() -> list[str]:
    """Names under /run/netns, sorted."""
    try:
        return sorted(entry.name for entry in NETNS_DIRECTORY.iterdir())
    except FileNotFoundError:
        return []


def exists(name: str) -> bool:
    """Whether a namespace of that name can be entered; a left-over file that is no mount does not count."""
    try:
        return _identity(NETNS_DIRECTORY / name)[0] == _identity(_OWN_NAMESPACE)[0]
    except FileNotFoundError:
        return False


def create(name: str) -> bool:
    """Make the namespace ``name``; False if it was there. Its loopback interface is still down."""
    require_root()
    if exists(name):
        return False
    _prepare_directory()
    target = NETNS_DIRECTORY / name
    target.touch(mode=0o444)
    try:
        with _restored():
            _check(_libc.unshare(_CLONE_NEWNET), f"make the network namespace {name}")
            _mount(_OWN_NAMESPACE, target, _MS_BIND)
    except BaseException:
        target.unlink()
        raise
    return True


def delete(name: str) -> bool:
    """Remove the name; False if there was none. The namespace itself goes when its last process does."""
    target = NETNS_DIRECTORY / name
    _libc.umount2(os.fsencode(target), _MNT_DETACH)
    try:
        target.unlink()
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def enter(name: str) -> Iterator[None]:
    """Move the calling thread into the namespace ``name`` (``default``: the machine's own) for the body, then back.

    Everything opened or started inside belongs to that namespace for good. Do not ``await`` inside.
    Raises UsageError if there is no such namespace.
    """
    path = Path("/proc/1/ns/net") if name == DEFAULT_INSTANCE else NETNS_DIRECTORY / name
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UsageError(f"no network namespace called {name}; there are: {', '.join(names()) or 'none'}") from None
    try:
        with _restored():
            _setns(target, name)
            yield
    finally:
        os.close(target)


def popen(argv: Sequence[str], name: str, **options: Any) -> subprocess.Popen[Any]:
    """Start a program in the namespace; options are those of subprocess.Popen."""
    with enter(name):
        return subprocess.Popen(argv, **options)


def run(argv: Sequence[str], name: str, *, check: bool = False, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a program in the namespace until it ends; options are those of subprocess.run."""
    with enter(name):
        return subprocess.run(argv, check=check, **options)


def processes(namespaces: Sequence[str]) -> list[int]:
    """Process ids that live in any of the named namespaces, our own excepted."""
    wanted = set()
    for name in namespaces:
        with contextlib.suppress(FileNotFoundError):
            wanted.add(_identity(NETNS_DIRECTORY / name))
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            # Processes come and go while we look, and kernel threads show no namespace.
            with contextlib.suppress(OSError):
                if _identity(entry / "ns/net") in wanted:
                    found.append(int(entry.name))
    return sorted(found)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_the_machines_own() -> bool:
    try:
        return _identity(Path("/proc/1/ns/net")) == _identity(_OWN_NAMESPACE)
    except PermissionError:
        # Without CAP_SYS_PTRACE (users, root in many containers) the namespace of process 1 is hidden. Its
        # statistics are not, and each namespace has files of its own for them.
        return _identity(Path("/proc/1/net/dev")) == _identity(Path("/proc/thread-self/net/dev"))


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    before = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _setns(before, "it came from")
        os.close(before)


def _prepare_directory() -> None:
    """Make /run/netns a shared mount: later namespaces show up in every mount namespace (ip-netns(8))."""
    NETNS_DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    shared = (b"none", os.fsencode(NETNS_DIRECTORY), b"none", _MS_SHARED | _MS_REC, None)
    if _libc.mount(*shared) != 0:
        _mount(NETNS_DIRECTORY, NETNS_DIRECTORY, _MS_BIND | _MS_REC)
        _check(_libc.mount(*shared), f"share {NETNS_DIRECTORY}")


def _mount(source: Path, target: Path, flags: int) -> None:
    result = _libc.mount(os.fsencode(source), os.fsencode(target), b"none", flags, None)
    _check(result, f"mount {source} on {target}")


def _setns(descriptor: int, name: str) -> None:
    _check(_libc.setns(descriptor, _CLONE_NEWNET), f"enter the network namespace {name}")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise PlatformError(f"cannot {what}: {os.strerror(ctypes.get_errno())}")
