"""Ports for a program that does without asyncio."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnat.client.wire import VERSION, Client
from dnat.errors import DnatError, NotRunningError, PeerError
from dnat.instance import Instance

LOOK_SECONDS = 120.0
"""How long a program looks for a daemon that went away: as long as one may take to start."""
AGAIN_SECONDS = 0.2
ENDED = "the lease has ended, or dnat has"


class PortLease:
    """Consecutive ports of the external address, held until `close` or the end of the program.

    A thread keeps watch; a daemon that is restarted meanwhile is found again by itself.
    """

    def __init__(self, path: Path, wish: dict[str, Any], on_lost: Callable[[PortLease], None] | None = None) -> None:
        """`lease` makes one."""
        self._path = path
        self._on_lost = on_lost
        self._over = threading.Event()
        self._closing = False
        self._client = _connect(path)
        try:
            granted = self._client.call("lease", **wish)["lease"]
            if not _stands(self._client, granted["id"]):
                raise PeerError("the ports were taken back at once; ask again")
        except BaseException:
            self._client.close()
            raise
        self.id: str = granted["id"]
        self.address: str = granted["address"]
        """External address."""
        self.first: int = granted["first"]
        self.last: int = granted["last"]
        self.protocol: str = granted["protocol"]
        self.reason = ""
        """Why the ports were lost; empty while they are held."""
        threading.Thread(target=self._watch, name="dnat lease", daemon=True).start()

    def __enter__(self) -> PortLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ports(self) -> range:
        """All of them."""
        return range(self.first, self.last + 1)

    @property
    def held(self) -> bool:
        """Whether the ports may be used."""
        return not self._over.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the ports are lost or given back; False if they still stand after ``timeout`` seconds."""
        return self._over.wait(timeout)

    def close(self) -> None:
        """Give the ports back."""
        self._closing = True
        self._client.close()
        self._over.set()

    def _watch(self) -> None:
        while not self._closing:
            try:
                event = self._client.event()
            except NotRunningError:
                event = {} if self._closing or self._find_again() else {"reason": ENDED}
            if event.get("event") == "missed" and not _stands(self._client, self.id):
                event = {"reason": ENDED}
            if "reason" in event or event.get("event") == "released":
                self.reason = event.get("reason") or "released by the operator"
                break
        self._client.close()
        self._over.set()
        if self.reason and not self._closing and self._on_lost is not None:
            self._on_lost(self)

    def _find_again(self) -> bool:
        """Connect to the daemon that has come since, and go on; False if there is none or the lease has ended."""
        self._client.close()
        deadline = time.monotonic() + LOOK_SECONDS
        while not self._closing and time.monotonic() < deadline:
            try:
                self._client = _connect(self._path)
                self._client.call("keep", leases=[self.id])
                return _stands(self._client, self.id)
            except DnatError:
                time.sleep(AGAIN_SECONDS)
        return False


def lease(
    count: int = 1,
    *,
    first: int | None = None,
    protocol: str = "any",
    parity: str = "any",
    exact: bool = True,
    lifetime: int = 0,
    on_lost: Callable[[PortLease], None] | None = None,
    path: Path | None = None,
) -> PortLease:
    """Lease consecutive ports, to be bound by this program itself.

    ``first``: exactly these; ``protocol``: ``udp``, ``tcp`` or ``any``; ``parity``: of the first port, ``even`` for
    RTP; ``exact``: rather none than fewer; ``lifetime``: seconds of a lease, renewed by itself, 0 as the server likes;
    ``on_lost`` is called in a thread of its own; ``path``: of the daemon's socket.

    Raises NotRunningError without dnat here, PlatformError when this user may not, UsageError for what cannot be,
    PeerError when the port server refuses.
    """
    wish = {"count": count, "first": first, "protocol": protocol, "parity": parity, "exact": exact}
    return PortLease(path or Instance.current().socket, wish | {"lifetime": lifetime}, on_lost)


def _stands(client: Client, lease_id: str) -> bool:
    """Watch over this connection's leases, and see whether one is among them."""
    return lease_id in {each["id"] for each in client.call("watch", mine=True)["leases"]}


def _connect(path: Path) -> Client:
    client = Client(path)
    try:
        client.call("hello", versions=[VERSION])
    except BaseException:
        client.close()
        raise
    return client
