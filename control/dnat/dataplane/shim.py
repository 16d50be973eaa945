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
    # bcc looks for it to see that this is a tree.
    "include/generated/uapi/linux/version.h": f'#include "{UAPI}/linux/version.h"\n',
}

_OF_BCC = ("if_ether.h", "if_packet.h", "ptrace.h")
"""Headers that bcc's own ask for below uapi/."""


def make_shim(root: Path) -> list[str]:
    """Fill ``root`` (which may exist already) with the tree to name in ``BCC_KERNEL_SOURCE``; returns options that the
    compiler needs beside it.

    The tree holds only what differs from the UAPI headers, which the compiler looks for last: a link to each of them
    would take half a second. Raises PlatformError when they are not installed.
    """
    machine = UAPI / f"{platform.machine()}-linux-gnu"
    if not (UAPI / "linux" / "types.h").is_file() or not any((one / "asm").is_dir() for one in (machine, UAPI)):
        raise PlatformError(f"no kernel headers for programs in {UAPI}: install the package linux-libc-dev")
    for name, text in {**_STUBS, "include/linux/types.h": _INTEGERS.format(uapi=UAPI)}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in _OF_BCC:
        link = root / "include/uapi/linux" / name
        if not link.is_symlink():
            link.symlink_to(UAPI / "linux" / name)
    return [option for path in (machine, UAPI) for option in ("-idirafter", str(path))]
