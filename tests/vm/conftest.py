"""Kernels that tests of virtual machines run on: ``DNAT_VM_KERNELS``, names of ``dnatvm.images``, else all of them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from dnatvm import images
from dnatvm.images import REPOSITORY

NAMES = os.environ.get("DNAT_VM_KERNELS", " ".join(images.KERNELS)).split()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel_name" in metafunc.fixturenames:
        metafunc.parametrize("kernel_name", NAMES, scope="session")


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("images of virtual machines need root")


@pytest.fixture(scope="session")
def installed_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installation of this checkout puts under /usr, for the Python of Debian 12 that the guests have."""
    tree = tmp_path_factory.mktemp("installation")
    settings = {"DESTDIR": str(tree), "PREFIX": "/usr", "PYTHONS": "3.11"}
    subprocess.run([REPOSITORY / "packaging/install.sh"], env=os.environ | settings, check=True, capture_output=True)
    return tree / "usr"
