"""Programs that manage networks, installed into a layer above this machine's own files: the machine never gets them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from machine import Machine

PACKAGES = ("dbus", "network-manager", "dhcpcd-base", "docker.io", "iptables", "busybox-static")

_DOWNLOAD = ("apt-get", "install", "--yes", "--quiet", "--quiet", "--no-install-recommends", "--download-only")
_CACHE = Path("var/cache/neighbours")


def installed(work: Path, namespace: str) -> Path:
    """The layer: what Debian's packages and their scripts put above the root. ``work`` must not be on its disk."""
    machine = Machine("installed", (Path("/"),), work, namespace).start()
    try:
        cache = machine.root / _CACHE
        (cache / "partial").mkdir(parents=True)
        command = [*_DOWNLOAD, "-o", f"Dir::Cache::archives={cache}", *PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        policy = machine.root / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        if list(cache.glob("*.deb")):
            install = f"dpkg --install --force-unsafe-io --force-confold /{_CACHE}/*.deb"
            machine.run("sh", "-c", install, seconds=300, DEBIAN_FRONTEND="noninteractive")
        shutil.rmtree(cache)
    finally:
        machine.stop()
    return machine.upper
