"""Kernel, BPF, bcc, and the machine's clock."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dnat.dataplane import abi, loader
from dnat.doctor.findings import Finding, Patient, not_tried
from dnat.errors import PlatformError
from dnat.system import sysctl

OLDEST_KERNEL = (5, 10)
_IMPORT_SECONDS = 30
_TIME_ERROR = 5
# struct timex: 208 octets on 64-bit Linux; all zero asks and sets nothing (adjtimex(2)).
_TIMEX_OCTETS = 512


def version(_: Patient) -> Iterator[Finding]:
    """Whether the kernel is recent enough."""
    release = platform.release()
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers and tuple(map(int, numbers.groups())) >= OLDEST_KERNEL:
        yield Finding("kernel", "ok", f"Linux {release}")
    else:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        yield Finding("kernel", "fail", f"Linux {release}", f"boot a kernel of at least {oldest}")


def bcc(_: Patient) -> Iterator[Finding]:
    """Whether the compiler and the headers are there. In a process of its own: LLVM is large."""
    program = "import bcc; print(bcc.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=_IMPORT_SECONDS
    )
    if done.returncode:
        yield Finding("bcc", "fail", "the BPF compiler cannot be imported", "apt install python3-bpfcc")
    elif not Path("/usr/include/linux/types.h").exists():
        yield Finding("bcc", "fail", "no headers for programs in /usr/include", "apt install linux-libc-dev")
    else:
        yield Finding("bcc", "ok", f"bcc {done.stdout.strip()}")


def programs(patient: Patient) -> Iterator[Finding]:
    """Whether the kernel takes the programs: compiled, verified, and thrown away again."""
    if patient.shown is not None:
        yield Finding("programs", "ok", "loaded: dnat is up here")
        return
    if not patient.is_root:
        yield not_tried("programs")
        return
    roles: list[abi.Role] = []
    roles += ["host"] if patient.is_host else []
    roles += ["router"] if patient.is_router else []
    loader.ensure_bpffs()
    for role in roles:
        pins = loader.BPFFS / f"doctor-{os.getpid()}"
        try:
            loader.ensure_loaded(role, pins)
            yield Finding("programs", "ok", f"the kernel accepts the programs of a {role}")
        except PlatformError as error:
            yield Finding("programs", "fail", str(error), "see docs/troubleshooting.md, programs do not load")
        finally:
            loader.unload(pins)


def jit(_: Patient) -> Iterator[Finding]:
    """Whether programs are translated to machine code."""
    try:
        enabled = sysctl.read("net/core/bpf_jit_enable") != "0"
    except PlatformError:
        # In a network namespace other than the machine's own this sysctl does not show.
        return
    if enabled:
        yield Finding("jit", "ok", "BPF programs run as machine code")
    else:
        yield Finding("jit", "warn", "BPF programs are interpreted: slow", "sysctl -w net.core.bpf_jit_enable=1")


def clock(_: Patient) -> Iterator[Finding]:
    """Whether somebody keeps the clock right; leases do not need that, certificates and logs do."""
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_OCTETS))
    if state == _TIME_ERROR:
        yield Finding(
            "clock",
            "warn",
            "the clock is not synchronised; leases do not mind, certificates and keys do",
            "timedatectl set-ntp true, or install chrony",
        )
    else:
        yield Finding("clock", "ok", "synchronised")
