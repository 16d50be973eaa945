"""What a host shows its server: from the configuration and the key file."""

from __future__ import annotations

import time
from ipaddress import IPv4Address
from pathlib import Path

from dnat import key_file
from dnat.config import HostSettings
from dnat.daemon.agreement import X25519Agreement
from dnat.daemon.clock import boottime
from dnat.errors import ConfigError
from dnat.pap.credentials import Credentials


def load_credentials(settings: HostSettings, path: Path, address: IPv4Address) -> Credentials:
    """Raises ConfigError where a key is required and there is none, PlatformError where it cannot be read."""
    offset = time.time() - boottime()
    if settings.authentication == "off":
        return Credentials(address, offset)
    key = key_file.load(path)
    if key is None and settings.authentication == "required":
        raise ConfigError(
            'host.authentication: "required" needs a key, and there is none here. Make one on the server'
            " (dnatctl key add NAME) and install it: dnatctl key install"
        )
    return Credentials(address, offset, key, X25519Agreement)
