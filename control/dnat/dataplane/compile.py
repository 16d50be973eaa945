"""Compile one role's programs, load them and pin them: ``python -m dnat.dataplane.compile``.

Run as a process of its own, because LLVM costs about 120 MB that the daemon shall not keep. The only module
that imports bcc.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import tempfile
from pathlib import Path

from dnat.dataplane import abi, objects
from dnat.dataplane.bpf import Map, object_get, object_pin
from dnat.dataplane.shim import make_shim
from dnat.dataplane.sources import SOURCES
from dnat.errors import PlatformError

WARNINGS = ("-Wall", "-Werror")


def compile_role(role: abi.Role, maps: Path, programs: Path, extra: str = "") -> None:
    """Load the programs of ``role`` on the maps pinned in ``maps``, and pin them in ``programs``.

    ``extra`` is C appended to the source. What clang and the verifier say goes to standard error. Raises
    PlatformError.
    """
    with tempfile.TemporaryDirectory(prefix="dnat-headers-") as headers:
        os.environ["BCC_KERNEL_SOURCE"] = headers
        including = make_shim(Path(headers))
        try:
            from bcc import BPF
        except ImportError as error:
            raise PlatformError(f"bcc cannot be imported ({error}): install the package python3-bpfcc") from error
        descriptors = {name: object_get(maps / name) for name in objects.MAPS[role]}
        options = [*WARNINGS, *including, f"-I{SOURCES / 'include'}", *objects.map_definitions(role, descriptors)]
        sources = [(SOURCES / name).read_text() for name in objects.SOURCE_FILES[role]]
        text = "\n".join((*sources, abi.assertions(), extra, ""))
        try:
            module = BPF(text=text.encode(), cflags=options)
            kinds = dict.fromkeys((*objects.STAGE_PROGRAMS[role].values(), *objects.PROGRAMS[role]), BPF.SCHED_CLS)
            kinds |= dict.fromkeys(objects.XDP_PROGRAMS[role], BPF.XDP)
            loaded = {name: module.load_func(name.encode(), kind).fd for name, kind in kinds.items()}
            # Programs that are attached call them from here on, so all of them have to be loaded by now.
            for stage, name in objects.STAGE_PROGRAMS[role].items():
                Map.pinned(maps / "stages").put(struct.pack("=I", stage), struct.pack("=i", loaded[name]))
            for name in (*objects.PROGRAMS[role], *objects.XDP_PROGRAMS[role]):
                object_pin(loaded[name], programs / name)
        # bcc raises bare Exceptions.
        except Exception as error:
            raise PlatformError(f"the {role} programs do not load: {error}") from error


def main() -> int:
    """Command line of the subprocess that the loader starts."""
    parser = argparse.ArgumentParser(prog="python -m dnat.dataplane.compile")
    parser.add_argument("--role", choices=list(objects.PROGRAMS), required=True)
    parser.add_argument("--maps", type=Path, required=True, help="directory with the pinned maps")
    parser.add_argument("--programs", type=Path, required=True, help="directory to pin the programs in")
    arguments = parser.parse_args()
    try:
        compile_role(arguments.role, arguments.maps, arguments.programs)
    except PlatformError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
