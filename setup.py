"""The C sources stand at the top level and travel in the wheel as data of the package; the rest: pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithSources(build_py):
    """Copies ``ebpf/`` to ``dnat/ebpf/``; an editable installation reads it where it is."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "dnat/ebpf"
            shutil.copytree("ebpf", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))


setup(cmdclass={"build_py": BuildWithSources})
