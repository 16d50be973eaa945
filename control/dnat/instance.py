"""Which dnat this is: one instance per network namespace, with its own directories, pins and socket."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from dnat import files
from dnat.errors import PlatformError
from dnat.system.netns import DEFAULT_INSTANCE, instance_name
from dnat.system.paths import BPF_DIRECTORY, NETNS_CONFIG_DIRECTORY, RUN_DIRECTORY, STATE_DIRECTORY


@dataclass(frozen=True, slots=True)
class Instance:
    """Names and paths of one daemon and what it leaves on the machine."""

    name: str
    """``default``, a name under /run/netns, or ``netns-INODE``."""

    @classmethod
    def current(cls) -> Instance:
        """The instance of the network namespace that this process is in."""
        return cls(instance_name())

    @property
    def run(self) -> Path:
        """What lives until reboot or ``down``."""
        return RUN_DIRECTORY / self.name

    @property
    def state(self) -> Path:
        """What outlives a reboot."""
        return STATE_DIRECTORY / self.name

    @property
    def socket(self) -> Path:
        return self.run / "api.sock"

    @property
    def pid_file(self) -> Path:
        return self.run / "daemon.pid"

    @property
    def log(self) -> Path:
        return self.run / "daemon.log"

    @property
    def journal(self) -> Path:
        return self.run / "journal.json"

    @property
    def saved_leases(self) -> Path:
        return self.run / "leases.json"

    @property
    def mappings(self) -> Path:
        """Static bindings that the operator asked for."""
        return self.run / "mappings.json"

    @property
    def programs(self) -> Path:
        """Which leases belong to programs of which users."""
        return self.run / "programs.json"

    @property
    def configuration_in_use(self) -> Path:
        """A copy of the file that the daemon came up with: what `reload` goes back to."""
        return self.run / "dnat.toml"

    @property
    def clock(self) -> Path:
        """Where the server's clock stands in this boot."""
        return self.run / "clock.json"

    @property
    def store(self) -> Path:
        return self.state / "leases.sqlite"

    @property
    def router_leases(self) -> Path:
        """What a router goes on with while the store that it follows is away."""
        return self.state / "router-leases.json"

    @property
    def key_store(self) -> Path:
        """The server's keys."""
        return self.state / "keys.sqlite"

    @property
    def key_file(self) -> Path:
        """The host's own key."""
        return self.state / "key"

    def pins(self, role: str) -> Path:
        """Directory of a role's pinned programs and maps."""
        return BPF_DIRECTORY / self.name / role

    def configuration(self) -> Path | None:
        """The configuration file when none is named: ``DNAT_CONFIG``, else the namespace's or the machine's."""
        if named := os.environ.get("DNAT_CONFIG"):
            return Path(named)
        candidate = self._configuration()
        return candidate if candidate.exists() else None

    def configuration_target(self) -> Path:
        """Where a configuration of this instance belongs, whether there is one or not."""
        return Path(os.environ["DNAT_CONFIG"]) if os.environ.get("DNAT_CONFIG") else self._configuration()

    def _configuration(self) -> Path:
        namespaced = NETNS_CONFIG_DIRECTORY / self.name / "dnat/dnat.toml"
        return Path("/etc/dnat/dnat.toml") if self.name == DEFAULT_INSTANCE else namespaced

    def first_start(self, now: float) -> float:
        """When this machine became a server, in seconds since 1970: ``now`` if it is one for the first time.

        A machine that cannot remember it counts as a server of old.
        """
        path = self.state / "first-start"
        try:
            return float(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            pass
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            files.replace(path, str(now).encode(), durable=True)
        except OSError:
            return 0.0
        return now

    def host_id(self, mac: str) -> bytes:
        """16 octets that name this host to the server, the same after a restart.

        They come from a random number kept in ``/var/lib/dnat`` and the LAN interface's MAC address, so that machines
        cloned from one disk image differ. Raises PlatformError.
        """
        path = self.state / "host-id"
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            try:
                seed = path.read_bytes()
            except FileNotFoundError:
                seed = secrets.token_bytes(16)
                files.replace(path, seed, durable=True)
        except OSError as error:
            raise PlatformError(
                f"{path} cannot be written ({error.strerror}): make room or correct its rights"
            ) from None
        return hashlib.sha256(seed + mac.encode()).digest()[:16]
