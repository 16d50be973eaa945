"""Have a role's programs and maps pinned, compiled at most once for each version of the sources.

Pins of one role: ``PINS/abi-N/maps/NAME``, the maps of one ABI number, and
``PINS/abi-N/programs-HASH/NAME``, the programs of one version of the sources. An upgrade with the same ABI
number adopts the maps, with all that is in them, and replaces the programs; another ABI number starts with
fresh maps. Programs that are attached run on until something is attached in their place: ``PINS/links`` stays,
and so do another ABI number's maps until ``forget_other_versions``, for the kernel clears a map of programs with
its last pin, and those that are attached call others by it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from dnat.dataplane import abi, objects
from dnat.dataplane.bpf import Map, MapType, map_create, object_pin
from dnat.dataplane.sources import SOURCES
from dnat.errors import PlatformError

BPFFS = Path("/run/dnat/bpf")
_BPFFS_MAGIC = 0xCAFE4A11
_CLONE_NEWNS = 0x00020000
_INFLUENCES = ("abi.py", "objects.py", "compile.py", "shim.py")
_COMPILE_SECONDS = 120

_libc = ctypes.CDLL(None, use_errno=True)


def ensure_bpffs(path: Path = BPFFS) -> None:
    """Mount a bpffs at ``path`` unless there is one.

    In a mount namespace other than init's (``ip netns exec`` makes one) it is mounted in init's first, so
    that it is there for those who come after. Raises PlatformError.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except PermissionError as error:
        raise PlatformError(f"cannot create {path}: dnat needs root") from error
    if _is_bpffs(path):
        return
    if not _in_mount_namespace_of_init():
        _mount_in_namespace_of_init(path)
    if not _is_bpffs(path):
        _mount(path)


def _in_mount_namespace_of_init() -> bool:
    try:
        return Path("/proc/self/ns/mnt").readlink() == Path("/proc/1/ns/mnt").readlink()
    except OSError:
        # Some sandboxes hide it even from root; then there is nothing to be gained there either.
        return True


def _is_bpffs(path: Path) -> bool:
    # struct statfs begins with f_type, one machine word; 256 octets are more than it has.
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        return False
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF == _BPFFS_MAGIC


def _mount(path: Path) -> None:
    if _libc.mount(b"bpf", os.fsencode(path), b"bpf", 0, b"mode=0700") == 0:
        return
    error = ctypes.get_errno()
    if error in (errno.EPERM, errno.EACCES):
        raise PlatformError(f"cannot mount a bpffs at {path}: dnat needs root")
    if error == errno.ENODEV:
        raise PlatformError("this kernel has no BPF file system (CONFIG_BPF_SYSCALL)")
    raise PlatformError(f"cannot mount a bpffs at {path}: {os.strerror(error)}")


def _mount_in_namespace_of_init(path: Path) -> None:
    """Best effort: where it fails, or does not propagate to us, the caller mounts for itself."""
    script = (
        "import os, ctypes, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "fd = os.open('/proc/1/ns/mnt', os.O_RDONLY)\n"
        f"sys.exit(libc.setns(fd, {_CLONE_NEWNS}) or os.makedirs({str(path)!r}, exist_ok=True)\n"
        f"  or libc.mount(b'bpf', {os.fsencode(path)!r}, b'bpf', 0, b'mode=0700'))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, timeout=30)


def maps_directory(pins: Path) -> Path:
    """Where a role's maps are pinned."""
    return pins / f"abi-{abi.ABI}" / "maps"


def program_pin(pins: Path, program: str) -> Path:
    """Where a program is pinned once ``ensure_loaded`` has returned; for ``attach``."""
    return _programs_directory(pins) / program


def _programs_directory(pins: Path) -> Path:
    return pins / f"abi-{abi.ABI}" / f"programs-{source_hash()}"


def source_hash() -> str:
    """Twelve hexadecimal digits that change with anything that changes the programs."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in (*sorted(SOURCES.rglob("*.[ch]")), *(here / name for name in _INFLUENCES)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def ensure_loaded(role: abi.Role, pins: Path) -> bool:
    """Have the programs and maps of ``role`` pinned below ``pins``, a directory in a bpffs, made if need be.

    Returns whether programs were compiled; then attach them. Fresh maps are empty: fill them before
    attaching. Raises PlatformError: no root, no BPF, no bcc, or programs that do not compile or load (with
    the path of the log).
    """
    if os.geteuid() != 0:
        raise PlatformError("loading the data plane needs root")
    programs = _programs_directory(pins)
    complete = all((programs / name).exists() for name in (*objects.PROGRAMS[role], *objects.XDP_PROGRAMS[role]))
    intact = _ensure_maps(role, maps_directory(pins))
    if complete and intact:
        return False
    _remove(programs)
    fresh = programs.with_name(f"new-{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        _compile(role, maps_directory(pins), fresh)
        fresh.rename(programs)
    except BaseException:
        _remove(fresh)
        raise
    for other in programs.parent.iterdir():
        if other not in (programs, maps_directory(pins)):
            _remove(other)
    return True


def forget_other_versions(pins: Path) -> None:
    """Remove what other ABI numbers have pinned. Call it once programs of ours are attached in place of theirs;
    safe to repeat.
    """
    for version in pins.glob("abi-*"):
        if version != _programs_directory(pins).parent:
            _remove(version)


def unload(pins: Path) -> None:
    """Remove every pin below ``pins``; what is attached goes on until detached. Safe to repeat."""
    _remove(pins)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _ensure_maps(role: abi.Role, directory: Path) -> bool:
    """Whether every map was there, in the right shape; those that were not are there now."""
    directory.mkdir(parents=True, exist_ok=True)
    intact = True
    for name, spec in objects.MAPS[role].items():
        path = directory / name
        if path.exists():
            if _has_shape(path, spec):
                continue
            path.unlink()
        intact = False
        _create(name, spec, path)
    return intact


def _has_shape(path: Path, spec: objects.MapSpec) -> bool:
    try:
        found = Map.pinned(path)
    except OSError:
        return False
    try:
        return (found.kind, found.key_size, found.value_size, found.entries) == (
            spec.kind,
            spec.key_size,
            spec.value_size,
            spec.entries,
        )
    finally:
        found.close()


def _create(name: str, spec: objects.MapSpec, path: Path) -> None:
    inner = create_inner_owners() if spec.kind is MapType.ARRAY_OF_MAPS else 0
    try:
        fd = _map_create(name, spec, inner)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise PlatformError("the kernel refuses BPF to this process: dnat needs root (CAP_BPF)") from error
        raise PlatformError(f"the kernel refuses the BPF map {name}: {error.strerror}") from error
    finally:
        if inner:
            os.close(inner)
    try:
        object_pin(fd, path)
    except OSError as error:
        raise PlatformError(f"cannot pin {path}: {error.strerror} (is it in a bpffs?)") from error
    finally:
        os.close(fd)


def create_inner_owners() -> int:
    """File descriptor of an empty map of owners for one external address."""
    spec = objects.INNER_OWNERS
    return _map_create("owners_inner", spec)


def _map_create(name: str, spec: objects.MapSpec, inner_fd: int = 0) -> int:
    return map_create(
        spec.kind,
        name,
        key_size=spec.key_size,
        value_size=spec.value_size,
        entries=spec.entries,
        inner_fd=inner_fd,
    )


def _compile(role: abi.Role, maps: Path, programs: Path) -> None:
    command = [sys.executable, "-m", "dnat.dataplane.compile", "--role", role]
    command += ["--maps", str(maps), "--programs", str(programs)]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", timeout=_COMPILE_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise PlatformError(f"compiling the {role} programs took longer than {_COMPILE_SECONDS} s") from error
    if done.returncode == 0:
        return
    log = BPFFS.parent / f"compile-{role}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stderr)
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    raise PlatformError(f"{lines[-1]} (the whole log: {log})")
