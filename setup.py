"""The C sources stand at the top level and travel in the wheel as data of the package; the rest: pyproject.toml.

With DNAT_COMPILE=1 the pure modules become C extensions by mypyc; needs mypy, a C compiler and Python's headers. They
stand beside the modules that they were made of, which every other Python goes on to use.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

COMPILED = ("types.py", "errors.py", "leases/*.py", "pap/*.py")
"""What a port server does for each question; within control/dnat."""


class BuildWithSources(build_py):
    """Copies ``ebpf/`` to ``dnat/ebpf/``; an editable installation reads it where it is."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "dnat/ebpf"
            shutil.copytree("ebpf", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))


def extensions() -> list:
    """What mypyc makes of the pure modules."""
    if os.environ.get("DNAT_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    paths = sorted(str(path) for pattern in COMPILED for path in Path("control/dnat").glob(pattern))
    return mypycify(paths, group_name="dnat", target_dir="build/mypyc", debug_level="0")


setup(cmdclass={"build_py": BuildWithSources}, ext_modules=extensions())
