"""Kernels that tests of virtual machines run on: ``DNAT_VM_KERNELS``, names of ``dnatvm.images``, else all of them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from dnatvm import images
from dnatvm.images import REPOSITORY
from dnatvm.machine import Guest, agent_files, job_archive

NOT_INSTALLED = (".*", "build", "dist", "tests", "*-output")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel_name" in metafunc.fixturenames:
        metafunc.parametrize("kernel_name", images.CHOSEN, scope="session")


@pytest.fixture(scope="session", autouse=True)
def _able() -> None:
    if os.geteuid() != 0:
        pytest.skip("images of virtual machines need root")
    if platform.machine() != "x86_64" or shutil.which("apt-get") is None:
        pytest.skip("the virtual machines are made on Debian or Ubuntu for x86_64")


@pytest.fixture(scope="session")
def installed_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installation of this checkout puts under /usr, for the Python of Debian 12 that the guests have."""
    # From a copy, since other tests may build here at the same time.
    copy = tmp_path_factory.mktemp("copy") / "checkout"
    shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(*NOT_INSTALLED))
    tree = tmp_path_factory.mktemp("installation")
    # The port server's modules, which could be compiled, are not what is tested here.
    settings = {"DESTDIR": str(tree), "PREFIX": "/usr", "PYTHONS": "3.11", "COMPILE": "0"}
    command = [copy / "packaging/install.sh"]
    done = subprocess.run(command, env=os.environ | settings, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tree / "usr"


@pytest.fixture(scope="session")
def guest(kernel_name: str, installed_tree: Path) -> Iterator[Guest]:
    """A machine that runs a kernel, with the package's files and the packet tests in it."""
    files = agent_files()
    for name in ("pyproject.toml", "tests/conftest.py"):
        files[f"checkout/{name}"] = (REPOSITORY / name).read_bytes()
    job = job_archive(files, {"usr": installed_tree, "checkout/tests/bpf": REPOSITORY / "tests/bpf"})
    kernel = images.kernel(kernel_name)
    with (
        tempfile.TemporaryDirectory(prefix="dnat-vm-") as directory,
        Guest("guest", kernel, images.root_disk(), job, Path(directory)) as running,
    ):
        assert running.run("uname", "-r").out.strip() == kernel.release
        assert not Path(f"/lib/modules/{kernel.release}/build").exists()
        yield running
