"""Programs of the benchmarks, compiled and loaded; and the kernel's own sender of frames."""

from __future__ import annotations

import atexit
import ctypes
import os
import struct
import tempfile
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal

from dnat.dataplane.bpf import Command, Map, bpf
from dnat.dataplane.shim import make_shim

HERE = Path(__file__).parent
_LIVE_FRAMES = 2
"""BPF_F_TEST_XDP_LIVE_FRAMES."""

Hook = Literal["tc", "xdp"]


@cache
def _bcc() -> tuple[Any, list[str]]:
    """The class BPF, and options for it; its headers stay until the process ends."""
    headers = tempfile.TemporaryDirectory(prefix="dnat-headers-")
    atexit.register(headers.cleanup)
    os.environ["BCC_KERNEL_SOURCE"] = headers.name
    including = make_shim(Path(headers.name))
    from bcc import BPF

    return BPF, including


class Module:
    """One C file, compiled; programs are loaded when they are asked for."""

    def __init__(self, file: str, **defines: int) -> None:
        options = [f"-D{name}={value}" for name, value in defines.items()]
        bcc, including = _bcc()
        self._module = bcc(text=(HERE / file).read_bytes(), cflags=[*options, *including, "-Wno-everything"])

    def program(self, name: str) -> int:
        """File descriptor of a program, which lives as long as the module."""
        bcc, _ = _bcc()
        kind = bcc.XDP if name.startswith(("xdp", "generate")) else bcc.SCHED_CLS
        return int(self._module.load_func(name.encode(), kind).fd)

    def map(self, name: str) -> Map:
        return Map(os.dup(self._module[name.encode()].map_fd))


@dataclass(frozen=True)
class Plan:
    """What the generator sends; ``struct plan`` in ``generator.c``."""

    ifindex: int
    """Interface to send by; 0: generate and drop."""
    flows: int
    length: int
    """Octets of the frame."""
    inbound: bool
    """Flows differ in their source; else in their destination."""
    source: IPv4Address
    destination: IPv4Address
    port: int
    """First port of the side that all flows share; they go over ``ports`` consecutive ones."""
    ports: int
    mac_destination: bytes
    mac_source: bytes

    def pack(self, start: int) -> bytes:
        """As the program reads it, beginning with the flow ``start``."""
        return struct.pack(
            "=6I4H6s6s",
            self.ifindex,
            self.flows,
            start,
            int(self.inbound),
            int(self.source),
            int(self.destination),
            self.port,
            self.port,
            self.ports,
            self.length,
            self.mac_destination,
            self.mac_source,
        )


class Generator:
    """Sends frames of a plan as fast as the path takes them, on the CPU that it is called on."""

    def __init__(self) -> None:
        self._module = Module("generator.c")
        self._program = self._module.program("generate")
        self._plans = self._module.map("plans")

    def prepare(self, plan: Plan, start: int = 0) -> None:
        """What ``send`` sends from now on, from the flow ``start``."""
        self._plan = plan
        self._plans.put(struct.pack("=I", 0), plan.pack(start))

    def send(self, packets: int) -> None:
        """Send and have them processed; returns when all of them are through. At most 2**31 packets."""
        frame = ctypes.create_string_buffer(self._plan.length)
        fields = (self._program, 0, self._plan.length, 0, ctypes.addressof(frame), 0, packets, 0, 0, 0, 0, 0)
        bpf(Command.PROG_TEST_RUN, "4I2Q4I2Q2I", *fields, _LIVE_FRAMES, 0)
