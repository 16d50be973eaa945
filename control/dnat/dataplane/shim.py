"""A stand-in for the kernel headers that bcc asks for, made from the distribution's UAPI headers.

bcc compiles against ``/lib/modules/VERSION/build``, which phones and routers do not have. Networking
programs need nothing of it but the user-visible headers (package ``linux-libc-dev``), so a tree of a few
stubs and links serves every kernel.
"""

from __future__ import annotations

import platform
from pathlib import Path

from dnat.errors import PlatformError

UAPI = Path("/usr/include")

_INTEGERS = """\
#ifndef DNAT_SHIM_TYPES_H
#define DNAT_SHIM_TYPES_H
#include "{uapi}/linux/types.h"
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef unsigned long uintptr_t;
typedef unsigned long size_t;
typedef _Bool bool;
enum {{ false, true }};
#endif
"""

_STUBS = {
    "include/linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
    "include/linux/log2.h": "",
    "include/asm/page.h": "",
    # linux/icmp.h includes it, and it would include the C library's sys/socket.h.
    "include/linux/if.h": "#define IFNAMSIZ 16\n",
    # bcc carries its own copy and includes it first.
    "include/uapi/linux/bpf.h": "",
    "include/generated/uapi/linux/version.h": "",
}


def make_shim(root: Path) -> Path:
    """Fill ``root`` (which may exist already) with the tree to name in ``BCC_KERNEL_SOURCE``; returns
    ``root``.

    Raises PlatformError when the UAPI headers are not installed.
    """
    machine = UAPI / f"{platform.machine()}-linux-gnu" / "asm"
    asm = machine if machine.is_dir() else UAPI / "asm"
    if not (UAPI / "linux" / "types.h").is_file() or not asm.is_dir():
        raise PlatformError(f"no kernel headers for programs in {UAPI}: install the package linux-libc-dev")
    for name, text in {**_STUBS, "include/linux/types.h": _INTEGERS.format(uapi=UAPI)}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    _link_headers(UAPI / "linux", root / "include" / "linux")
    _link_headers(UAPI / "linux", root / "include" / "uapi" / "linux")
    _link_headers(asm, root / "include" / "asm")
    _link_headers(UAPI / "asm-generic", root / "include" / "asm-generic")
    return root


def _link_headers(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for header in source.iterdir():
        link = target / header.name
        if not link.exists() and not link.is_symlink():
            link.symlink_to(header)
