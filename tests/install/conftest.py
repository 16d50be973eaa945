"""Fixtures of the tests of installation: what is built, and machines to install it on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from machine import REPOSITORY

CACHE = Path(os.environ.get("DNAT_TEST_CACHE", "/var/tmp/dnat-test-root"))


@pytest.fixture(scope="session")
def package() -> Path:
    """The Debian package of this checkout."""
    done = subprocess.run([REPOSITORY / "packaging/deb.sh"], check=True, capture_output=True, text=True)
    return REPOSITORY / done.stdout.split()[-1]


@pytest.fixture(scope="session")
def debian() -> Path:
    """A clean Debian 12 root."""
    root = CACHE / "bookworm"
    subprocess.run([REPOSITORY / "tests/install/root.sh", root], check=True)
    return root
