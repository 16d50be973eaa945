"""Kamailio's configuration: the template filled in, and checked by Kamailio itself."""

from __future__ import annotations

import shutil
import string
import subprocess
from dataclasses import dataclass
from importlib import resources
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal

from dnat.errors import PlatformError
from dnat.sip.places import PLACES

MODULE_DIRECTORIES = (
    Path("/usr/lib/x86_64-linux-gnu/kamailio/modules"),
    Path("/usr/lib/aarch64-linux-gnu/kamailio/modules"),
    Path("/usr/lib/arm-linux-gnueabihf/kamailio/modules"),
    Path("/usr/lib64/kamailio/modules"),
    Path("/usr/lib/kamailio/modules"),
)

_PACKAGES = "apt-get install kamailio kamailio-tls-modules kamailio-sqlite-modules"


Mode = Literal["proxy", "redirect", "registrar"]
WELL_KNOWN_PORT = 5060
"""What a SIP address without a port means."""


class _Template(string.Template):
    delimiter = "@"


@dataclass(frozen=True, slots=True)
class ServerConfiguration:
    """Everything that the template needs."""

    mode: Mode
    """Pass requests on; answer 302 with the phone's combination network address; do that for a redirect server only."""
    registrar: str | None
    """``ADDRESS:PORT`` of the registrar that a redirect server asks; None where it is one itself."""
    address: IPv4Address
    """External address."""
    port: int
    """UDP and TCP."""
    tls_port: int | None
    domain: str
    """Part of a SIP address after the ``@``; the external address itself where there is no name."""
    realm: str
    """Realm of digest authentication; passwords are stored hashed with it."""
    certificate: Path
    key: Path
    users: Path
    """SQLite file with the users."""
    registrations: Path
    """SQLite file with the registrations."""
    rpc_socket: Path
    secret: str
    """What only this server knows: marks its own Record-Route headers."""
    block_rate: int
    """Requests a second from 16 neighbouring ports of one address."""
    address_rate: int
    """Requests a second from one address other than our own."""


def render(configuration: ServerConfiguration) -> str:
    """The text of kamailio.cfg. Raises PlatformError when Kamailio's modules are not there."""
    defines = []
    if configuration.mode != "proxy":
        defines.append("#!define REDIRECT")
    if configuration.mode == "registrar":
        defines.append("#!define REGISTRAR_ONLY")
    if configuration.registrar is not None:
        defines.append("#!define ASK")
    if configuration.mode == "registrar" or configuration.registrar is not None:
        defines.append("#!define WITHOUT_USERS")
    if configuration.tls_port is not None:
        defines.append("#!define WITH_TLS")
    # Without a port an alias would fit every phone at the shared address.
    aliases = [f'"{configuration.domain}"'] if configuration.domain != str(configuration.address) else []
    if configuration.mode == "registrar" and configuration.port != WELL_KNOWN_PORT:
        # Its users are known by the redirect server's address.
        aliases.append(f"{configuration.address}:{WELL_KNOWN_PORT}")
    template = resources.files("dnat.sip").joinpath("kamailio.cfg").read_text(encoding="utf-8")
    return _Template(template).substitute(
        defines="\n".join(defines),
        alias="\n".join(f"alias={alias}" for alias in aliases),
        registrar=configuration.registrar or "",
        address=configuration.address,
        port=configuration.port,
        tls_port=configuration.tls_port or 0,
        realm=configuration.realm,
        certificate=configuration.certificate,
        key=configuration.key,
        users=configuration.users,
        registrations=configuration.registrations,
        rpc_socket=configuration.rpc_socket,
        secret=configuration.secret,
        block_rate=configuration.block_rate,
        address_rate=configuration.address_rate,
        places=PLACES,
        modules=_modules(configuration.tls_port is not None),
    )


def check(path: Path) -> None:
    """Have Kamailio check a configuration file. Raises PlatformError with its words."""
    done = subprocess.run(
        [program(), "-c", "-f", str(path)], capture_output=True, text=True, check=False, timeout=20, cwd="/"
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "CRITICAL" in line or "ERROR" in line]
        raise PlatformError(f"Kamailio refuses {path}: {said[0] if said else done.stderr.strip()}")


def program() -> str:
    """Kamailio's path. Raises PlatformError where it is not installed."""
    found = shutil.which("kamailio", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if found is None:
        raise PlatformError(f'the role "sip" needs Kamailio: {_PACKAGES}')
    return found


def _modules(tls: bool) -> Path:
    for directory in MODULE_DIRECTORIES:
        if directory.is_dir():
            for module in ("db_sqlite.so", *(("tls.so",) if tls else ())):
                if not (directory / module).exists():
                    raise PlatformError(f"Kamailio's module {module} is not installed: {_PACKAGES}")
            return directory
    raise PlatformError(f"Kamailio's modules are not installed: {_PACKAGES}")
