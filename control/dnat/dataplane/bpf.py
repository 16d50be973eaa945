"""The part of bpf(2) that the daemon needs, by ctypes: maps, pins, test runs; no compiler.

bcc would bring LLVM, and about 120 MB, into the process. Errors of the kernel appear as OSError with its
errno.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from dnat.errors import PlatformError

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "armv7l": 386, "ppc64le": 361, "s390x": 351}
_ATTRIBUTES_SIZE = 128
"""Octets handed to the kernel; it accepts more than it knows as long as the rest is zero."""
_POSSIBLE_CPUS = Path("/sys/devices/system/cpu/possible")

_libc = ctypes.CDLL(None, use_errno=True)


class Command(enum.IntEnum):
    """First argument of bpf(2), linux/bpf.h."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_DETACH = 34


class MapType(enum.IntEnum):
    """Map types in use, linux/bpf.h."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    ARRAY_OF_MAPS = 12
    RINGBUF = 27


class Update(enum.IntEnum):
    """What an update may do, linux/bpf.h."""

    ANY = 0
    NOEXIST = 1
    EXIST = 2


def _invoke(command: Command, layout: str, *fields: int | bytes) -> tuple[int, int, bytes]:
    """Result, errno and the attributes as the kernel left them."""
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise PlatformError(f"dnat does not know the BPF system call of the architecture {platform.machine()}")
    buffer = ctypes.create_string_buffer(struct.pack("=" + layout, *fields), _ATTRIBUTES_SIZE)
    result = _libc.syscall(number, int(command), buffer, len(buffer))
    error = ctypes.get_errno() if result < 0 else 0
    if error == errno.ENOSYS:
        raise PlatformError("this kernel has no BPF (CONFIG_BPF_SYSCALL)")
    return result, error, buffer.raw


def bpf(command: Command, layout: str, *fields: int | bytes) -> tuple[int, bytes]:
    """Call bpf(2) with attributes packed by ``layout`` (struct, native order, no padding).

    Returns the result and the attributes as the kernel left them. Raises OSError, and PlatformError when
    this kernel or this machine has no bpf(2).
    """
    result, error, attributes = _invoke(command, layout, *fields)
    if error:
        raise OSError(error, f"{command.name}: {os.strerror(error)}")
    return result, attributes


def object_get(path: Path) -> int:
    """File descriptor of a pinned map or program."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return bpf(Command.OBJ_GET, "Q", ctypes.addressof(name))[0]


def object_pin(fd: int, path: Path) -> None:
    """Give a map or program a name in a bpffs, where it outlives this process."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(Command.OBJ_PIN, "QI", ctypes.addressof(name), fd)


def program_by_id(identifier: int) -> int:
    """File descriptor of a program by the kernel's number for it. Raises FileNotFoundError when it is gone."""
    return bpf(Command.PROG_GET_FD_BY_ID, "I", identifier)[0]


def program_name(fd: int) -> str:
    """What the kernel calls a program; at most 15 letters."""
    name: bytes = struct.unpack_from("=16s", object_info(fd), 64)[0]
    return name.rstrip(b"\0").decode()


def object_info(fd: int) -> bytes:
    """What the kernel says of a program or a link: the first octets of ``struct bpf_prog_info`` or
    ``struct bpf_link_info``.
    """
    info = ctypes.create_string_buffer(128)
    bpf(Command.OBJ_GET_INFO_BY_FD, "IIQ", fd, len(info), ctypes.addressof(info))
    return info.raw


def map_create(kind: MapType, name: str, *, key_size: int, value_size: int, entries: int, inner_fd: int = 0) -> int:
    """File descriptor of a new map; ``inner_fd`` is the template for maps of maps."""
    label = name.encode()[:15].ljust(16, b"\0")
    fields = (kind, key_size, value_size, entries, 0, inner_fd, 0, label)
    try:
        return bpf(Command.MAP_CREATE, "7I16s", *fields)[0]
    except PermissionError:
        if not _lift_memory_limit():
            raise
    return bpf(Command.MAP_CREATE, "7I16s", *fields)[0]


def _lift_memory_limit() -> bool:
    """Linux before 5.11 counts maps as locked memory, and refuses those beyond the limit; whether it was changed."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    if resource.getrlimit(resource.RLIMIT_MEMLOCK) == unlimited:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
    # Raising it is for those with CAP_SYS_RESOURCE.
    except (OSError, ValueError):
        return False
    return True


def possible_cpus() -> int:
    """Number of values that a per-CPU map keeps for each key."""
    last = _POSSIBLE_CPUS.read_text().strip().split(",")[-1]
    return int(last.rpartition("-")[2]) + 1


class Map:
    """A map by its file descriptor, keys and values as octets in native order."""

    def __init__(self, fd: int) -> None:
        """Takes over ``fd``. Raises OSError when it is no map."""
        self.fd = fd
        info = ctypes.create_string_buffer(80)
        bpf(Command.OBJ_GET_INFO_BY_FD, "IIQ", fd, len(info), ctypes.addressof(info))
        kind, self.id, self.key_size, self.value_size, self.entries, self.flags = struct.unpack_from("=6I", info.raw)
        self.kind: int = kind
        if kind == MapType.PERCPU_ARRAY:
            self._slot = (self.value_size + 7) // 8 * 8
            self._size = self._slot * possible_cpus()
        else:
            self._slot = self._size = self.value_size

    @classmethod
    def pinned(cls, path: Path) -> Map:
        """Open a pin. Raises FileNotFoundError when there is none."""
        return cls(object_get(path))

    @classmethod
    def by_id(cls, identifier: int) -> Map:
        """Open a map by the kernel's number for it. Raises FileNotFoundError when it is gone."""
        return cls(bpf(Command.MAP_GET_FD_BY_ID, "I", identifier)[0])

    def close(self) -> None:
        """Give up the file descriptor; safe to repeat."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _element(self, command: Command, key: bytes, value_address: int = 0, flags: int = 0) -> None:
        if len(key) != self.key_size:
            raise ValueError(f"key of {len(key)} octets for a map with keys of {self.key_size}")
        buffer = ctypes.create_string_buffer(key, self.key_size)
        bpf(command, "IIQQQ", self.fd, 0, ctypes.addressof(buffer), value_address, flags)

    def get(self, key: bytes) -> bytes | None:
        """The value, or None; of a per-CPU map the values of all CPUs in a row, each padded to eight
        octets.
        """
        value = ctypes.create_string_buffer(self._size)
        try:
            self._element(Command.MAP_LOOKUP_ELEM, key, ctypes.addressof(value))
        except FileNotFoundError:
            return None
        return value.raw

    def put(self, key: bytes, value: bytes, flags: Update = Update.ANY) -> None:
        """Write one entry. Raises OSError: EEXIST, ENOENT by ``flags``, E2BIG when the map is full."""
        if len(value) != self._size:
            raise ValueError(f"value of {len(value)} octets for a map with values of {self._size}")
        buffer = ctypes.create_string_buffer(value, self._size)
        self._element(Command.MAP_UPDATE_ELEM, key, ctypes.addressof(buffer), flags)

    def delete(self, key: bytes) -> bool:
        """Whether there was an entry to delete."""
        try:
            self._element(Command.MAP_DELETE_ELEM, key)
        except FileNotFoundError:
            return False
        return True

    def keys(self) -> Iterator[bytes]:
        """Every key. Entries that come or go meanwhile may or may not be seen."""
        following = ctypes.create_string_buffer(self.key_size)
        previous: ctypes.Array[ctypes.c_char] | None = None
        for _ in range(self.entries + 1):
            address = ctypes.addressof(previous) if previous is not None else 0
            try:
                bpf(Command.MAP_GET_NEXT_KEY, "IIQQ", self.fd, 0, address, ctypes.addressof(following))
            except FileNotFoundError:
                return
            yield following.raw
            previous = ctypes.create_string_buffer(following.raw, self.key_size)

    def items(self) -> list[tuple[bytes, bytes]]:
        """Every entry of a hash or an array, in one system call."""
        keys, values = self.dump()
        return list(
            zip(_slices(keys, self.key_size), _slices(values, self.value_size), strict=True),
        )

    def dump(self) -> tuple[bytes, bytes]:
        """Every key in a row, and every value in a row; those of an array by index."""
        keys = ctypes.create_string_buffer(self.key_size * self.entries)
        values = ctypes.create_string_buffer(self.value_size * self.entries)
        cursor = ctypes.create_string_buffer(max(4, self.key_size))
        addresses = (ctypes.addressof(cursor), ctypes.addressof(keys), ctypes.addressof(values))
        _, error, attributes = _invoke(Command.MAP_LOOKUP_BATCH, "4QIIQQ", 0, *addresses, self.entries, self.fd, 0, 0)
        # ENOENT says that the end was reached.
        if error not in (0, errno.ENOENT):
            raise OSError(error, f"MAP_LOOKUP_BATCH: {os.strerror(error)}")
        (count,) = struct.unpack_from("=I", attributes, 32)
        return keys.raw[: count * self.key_size], values.raw[: count * self.value_size]

    def put_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Write many entries in one system call."""
        if not entries:
            return
        keys = ctypes.create_string_buffer(b"".join(entries.keys()))
        values = ctypes.create_string_buffer(b"".join(entries.values()))
        addresses = (ctypes.addressof(keys), ctypes.addressof(values))
        bpf(Command.MAP_UPDATE_BATCH, "4QIIQQ", 0, 0, *addresses, len(entries), self.fd, 0, 0)


def _slices(octets: bytes, size: int) -> Iterator[bytes]:
    return (octets[start : start + size] for start in range(0, len(octets), size))


def program_test_run(fd: int, packet: bytes, context: bytes = b"", repeat: int = 1) -> tuple[int, bytes, int]:
    """Run a program on a packet; returns its verdict (signed), the packet as it left, and nanoseconds per
    run.

    ``context`` is a ``struct __sk_buff``, or its first octets, or empty.
    """
    data_in = ctypes.create_string_buffer(packet, len(packet))
    data_out = ctypes.create_string_buffer(len(packet) + 256)
    context_in = ctypes.create_string_buffer(context, max(1, len(context)))
    _, attributes = bpf(
        Command.PROG_TEST_RUN,
        "4I2Q4I2Q",
        fd,
        0,
        len(packet),
        len(data_out),
        ctypes.addressof(data_in),
        ctypes.addressof(data_out),
        repeat,
        0,
        len(context),
        0,
        ctypes.addressof(context_in) if context else 0,
        0,
    )
    verdict, _, size = struct.unpack_from("=iII", attributes, 4)
    (duration,) = struct.unpack_from("=I", attributes, 36)
    return verdict, data_out.raw[:size], duration
