"""Ports for a program that does without asyncio."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnat.client.granted import AGAIN_SECONDS, ENDED, LOOK_SECONDS, Granted, end, stands, wish
from dnat.client.wire import VERSION, Client
from dnat.errors import DnatError, NotRunningError
from dnat.instance import Instance


class PortLease(Granted):
    """Consecutive ports of the external address, held until `close` or the end of the program.

    A thread keeps watch; a daemon that is restarted meanwhile is found again by itself.
    """

    def __init__(self, path: Path, wanted: dict[str, Any], on_lost: Callable[[PortLease], None] | None = None) -> None:
        """`lease` makes one."""
        self._path = path
        self._on_lost = on_lost
        self._over = threading.Event()
        self._closing = False
        self._client = _connect(path)
        try:
            self._take(self._client.call("lease", **wanted)["lease"], _watched(self._client))
        except BaseException:
            self._client.close()
            raise
        self.reason = ""
        """Why the ports were lost; empty while they are held."""
        threading.Thread(target=self._watch, name="dnat lease", daemon=True).start()

    def __enter__(self) -> PortLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
            if event.get("event") == "missed" and not stands(self.id, _watched(self._client)):
                event = {"reason": ENDED}
            self.reason = end(event)
            if self.reason:
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
                return stands(self.id, _watched(self._client))
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
    wanted = wish(count, first, protocol, parity, exact, lifetime)
    return PortLease(path or Instance.current().socket, wanted, on_lost)


def _watched(client: Client) -> dict[str, Any]:
    """Hear from now on what becomes of this connection's leases; what they are now."""
    watched: dict[str, Any] = client.call("watch", mine=True)
    return watched


def _connect(path: Path) -> Client:
    client = Client(path)
    try:
        client.call("hello", versions=[VERSION])
    except BaseException:
        client.close()
        raise
    return client
