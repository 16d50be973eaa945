"""The least network that dnat makes sense in: a server and two hosts, for tests that break something."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nodes import Machine

EXTERNAL = "198.51.100.9"


@dataclass(frozen=True)
class Small:
    """The server (10.77.0.1) has no router role: what is tested with it is PAP, leases and the command line."""

    server: Machine
    host: Machine
    other: Machine
    configuration: Path

    def configure(self, settings: str = "") -> str:
        """Write the server's configuration; returns its path."""
        text = f'roles = ["server"]\n[server]\nexternal_addresses = ["{EXTERNAL}"]\nlisten = "10.77.0.1"\n'
        self.configuration.write_text(text + settings + "\n")
        return str(self.configuration)

    def serve(self, settings: str = "") -> None:
        """Bring the server up, with more lines for its table ``[server]``."""
        self.server.dnatctl("up", "--config", self.configure(settings))
