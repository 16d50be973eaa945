"""Programs of the distribution that virtual machines need, installed when they are missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "depmod": "kmod",
    "mkfs.ext4": "e2fsprogs",
    "xz": "xz-utils",
}


def ensure_tools() -> None:
    """Raises RuntimeError on another architecture, or when something is missing and cannot be installed."""
    if platform.machine() != "x86_64":
        raise RuntimeError(f"the virtual machines are made for x86_64, this machine is {platform.machine()}")
    # Some are in directories that only root has on the PATH.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = sorted({package for tool, package in _PACKAGES.items() if shutil.which(tool, path=path) is None})
    if not missing:
        return
    if os.geteuid() != 0:
        raise RuntimeError(f"these packages are missing: {' '.join(missing)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    if subprocess.run(install, env=environment, capture_output=True, check=False).returncode != 0:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(install, env=environment, stdout=subprocess.DEVNULL, check=True)
