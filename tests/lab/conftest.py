"""The lab that these tests run on: ``DNAT_LAB`` is ``namespaces`` (if not set), ``qemu`` or ``vagrant``.

With ``qemu``, ``DNAT_LAB_KERNEL`` names a kernel of ``dnatvm.images`` and ``DNAT_LAB_PHONES`` says how many phones.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import REPOSITORY, Namespaces, Place, Vagrant, Virtual

KIND = os.environ.get("DNAT_LAB", "namespaces")
PHONES = int(os.environ.get("DNAT_LAB_PHONES", "1" if KIND == "qemu" else "2"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that are not about this kind of lab, or need a node that it does not have, are left out."""
    left_out = []
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        phones = item.get_closest_marker("phones")
        if (phones and phones.args[0] > PHONES) or (item.get_closest_marker("installed") and KIND == "namespaces"):
            left_out.append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def build_package() -> Path:
    """The Debian package of this checkout."""
    done = subprocess.run([REPOSITORY / "packaging/deb.sh"], check=True, capture_output=True, text=True)
    return REPOSITORY / done.stdout.split()[-1]


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """A lab that is up. Tests leave it as they find it."""
    if os.geteuid() != 0 and KIND != "vagrant":
        pytest.skip("labs of namespaces and of virtual machines need root")
    made: Place
    if KIND == "vagrant":
        made = Vagrant()
    elif KIND == "qemu":
        made = Virtual(os.environ.get("DNAT_LAB_KERNEL", "6.1"), build_package(), PHONES)
    else:
        made = Namespaces()
    yield made
    made.close()
