"""The server's TLS certificate, made where none is given."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Address
from pathlib import Path

from dnat.errors import PlatformError

DAYS = 3650


def ensure(directory: Path, domain: str, address: IPv4Address) -> tuple[Path, Path]:
    """Certificate and key for a domain and an address; made once, and again when these change.

    It is its own authority: phones that verify trust a copy of it. Raises PlatformError.
    """
    certificate, key, subject = directory / "certificate.pem", directory / "key.pem", directory / "subject"
    wanted = f"{domain} {address}"
    try:
        if certificate.exists() and key.exists() and subject.read_text(encoding="utf-8") == wanted:
            return certificate, key
    except OSError:
        pass
    directory.mkdir(parents=True, exist_ok=True)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", str(DAYS), "-subj", f"/CN={domain}", "-keyout", str(key), "-out", str(certificate)]
    # Some phones look for addresses among the names only.
    command += ["-addext", f"subjectAltName=DNS:{domain},DNS:{address},IP:{address}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        raise PlatformError("making a certificate needs openssl: apt-get install openssl") from None
    if done.returncode != 0:
        raise PlatformError(f"no certificate could be made: {done.stderr.strip().splitlines()[-1]}")
    key.chmod(0o640)
    subject.write_text(wanted, encoding="utf-8")
    return certificate, key
