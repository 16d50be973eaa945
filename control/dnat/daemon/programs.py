"""Leases of programs: each belongs to a connection of the local API, and ends with it (docs/api.md).

They outlive the daemon: a restarted one waits for their programs to connect again, and gives back what nobody claims.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dnat import files
from dnat.config import ApiSettings
from dnat.daemon.announcer import AddressChange, Change, LeaseChange, Renamed
from dnat.daemon.session import Session
from dnat.daemon.wishes import describe_lease, explicit
from dnat.errors import DnatError, PeerError, UsageError
from dnat.pap.limits import Buckets, Rate
from dnat.types import Lease

if TYPE_CHECKING:
    from dnat.daemon.host import HostRole
    from dnat.daemon.metrics import Measured

log = logging.getLogger(__name__)

KEEP_SECONDS = 10.0
"""How long a restarted daemon waits for the programs of its forerunner."""
ALL_LEASES = 20
"""Of all programs together: a host has 32, and needs some for itself."""
LEASES_PER_USER = Rate(5, 20)
"""New leases of a user that is not root; who asks for more waits."""
LEASES_OF_ALL = Rate(8, 30)
"""The same of all such users: the server answers 20 questions of a host a second, and the host has some of its own."""
WAIT_SECONDS = 0.1
PRIVILEGED_PORTS = 1024
"""Below this only root leases, as only root binds."""


class _Held(msgspec.Struct):
    """One lease of a program."""

    handle: int
    """Identifier under which it was granted; the program knows it by this one."""
    id: int
    """Identifier that it has now: a server that lost its state gives another one."""
    uid: int


class Programs:
    """The leases of every program, and who listens."""

    def __init__(self, settings: ApiSettings, path: Path, host: HostRole) -> None:
        self._settings = settings
        self._path = path
        self._host = host
        self._held = self._load()
        self._sessions: dict[int, Session] = {}
        self._clients: set[Session] = set()
        """Those that have leased something."""
        self._asking: list[tuple[int, int]] = []
        self._pace = Buckets(LEASES_PER_USER), Buckets(LEASES_OF_ALL)
        self._watching: dict[Session, bool] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        host.announcer.listeners.append(self._changed)

    def measure(self, into: Measured) -> None:
        """Figures of the programs."""
        into.program_leases = len(self._held)

    def adopt(self) -> None:
        """Wait for the programs of the daemon before this one: who does not claim its leases soon loses them."""
        self._held = {handle: held for handle, held in self._held.items() if self._find(held.id)}
        if self._held:
            asyncio.get_running_loop().call_later(KEEP_SECONDS, self._give_up_waiting)

    def say_goodbye(self) -> None:
        """The host gives everything back: tell whoever listens, before the connections end."""
        for lease in self._host.leases:
            self._tell(lease, {"event": "released", "lease": self._describe(lease)})

    async def lease(
        self,
        session: Session,
        count: int = 1,
        first: int | None = None,
        protocol: str = "any",
        parity: str = "any",
        exact: bool = False,
        lifetime: int = 0,
    ) -> dict[str, Any]:
        """Lease ports until the client gives them back or goes. Raises UsageError, PeerError."""
        want = explicit(count, first, protocol, parity, exact, lifetime)
        if not session.is_root:
            await self._wait_for_turn(session.uid)
            self._check_quota(session, count, first)
        self._asking.append((session.uid, count))
        try:
            answer = await self._host.request(want)
        finally:
            self._asking.remove((session.uid, count))
        id_ = int(answer["lease"]["id"], 16)
        if self._find(id_) is None:
            raise PeerError("the server took the ports back at once; ask again")
        self._held[id_] = _Held(id_, id_, session.uid)
        self._bind(id_, session)
        self._save()
        return answer

    async def keep(self, session: Session, leases: list[str]) -> dict[str, Any]:
        """Go on with leases of the same user whose connection ended with the daemon; those that ended are left out."""
        kept = []
        for handle in map(_number, leases):
            held = self._held.get(handle)
            lease = self._find(held.id) if held else None
            if held is None or lease is None or (held.uid != session.uid and not session.is_root):
                continue
            if self._sessions.get(handle, session) is not session:
                raise UsageError(f"another connection holds the lease {handle:016x}")
            self._bind(handle, session)
            kept.append(self._describe(lease))
        return {"leases": kept}

    async def give_back(self, session: Session, leases: list[str]) -> dict[str, Any]:
        """Release leases of this connection. Raises UsageError."""
        handles = list(map(_number, leases))
        for handle in handles:
            if self._sessions.get(handle) is not session:
                raise UsageError(f"this connection holds no lease {handle:016x}")
        return {"released": await self._release(handles)}

    async def watch(self, session: Session, mine: bool = False) -> dict[str, Any]:
        """Send events from now on; ``mine``: of leases only those of this connection. Returns how things stand."""
        if session not in self._watching:
            session.on_end.append(lambda: self._watching.pop(session, None))
        self._watching[session] = mine
        address = self._host.external
        leases = [lease for lease in self._host.leases if not mine or self._holder(lease) is session]
        return {"address": str(address) if address else None, "leases": [self._describe(each) for each in leases]}

    # What happens to leases

    def _changed(self, change: Change) -> None:
        match change:
            case Renamed(former_id, lease):
                for held in self._held.values():
                    if held.id == former_id:
                        held.id = lease.id
                self._save()
            case AddressChange(former, address):
                event = {
                    "event": "address",
                    "former": str(former) if former else None,
                    "address": str(address) if address else None,
                }
                for session in tuple(self._watching):
                    session.tell(event)
            case LeaseChange(kind, lease, reason, code):
                details = {"reason": reason, "code": code} if kind == "lost" else {}
                self._tell(lease, {"event": kind, "lease": self._describe(lease), **details})
                if kind != "granted" and (handle := self._handle(lease.id)) is not None:
                    self._forget(handle)

    def _tell(self, lease: Lease, event: dict[str, Any]) -> None:
        holder = self._holder(lease)
        for session, mine in tuple(self._watching.items()):
            if not mine or session is holder:
                session.tell(event)

    def _bind(self, handle: int, session: Session) -> None:
        if session not in self._clients:
            self._clients.add(session)
            session.on_end.append(lambda: self._gone(session))
        self._sessions[handle] = session

    def _gone(self, session: Session) -> None:
        """The program has ended, or closed its connection."""
        self._clients.discard(session)
        self._release_soon([handle for handle, each in self._sessions.items() if each is session])

    def _give_up_waiting(self) -> None:
        if unclaimed := [handle for handle in self._held if handle not in self._sessions]:
            log.info("%d leases of programs that did not come back are released", len(unclaimed))
            self._release_soon(unclaimed)

    def _release_soon(self, handles: Iterable[int]) -> None:
        task = asyncio.create_task(self._release_quietly(list(handles)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _release_quietly(self, handles: list[int]) -> None:
        for handle in handles:
            try:
                await self._release([handle])
            except DnatError as error:
                log.warning("a lease of a program that is gone stays: %s", error)

    async def _release(self, handles: list[int]) -> list[dict[str, Any]]:
        standing = [held.id for each in handles if (held := self._held.get(each)) and self._find(held.id)]
        for handle in handles:
            self._sessions.pop(handle, None)
        released = await self._host.release(standing) if standing else []
        for handle in handles:
            self._forget(handle)
        return released

    def _forget(self, handle: int) -> None:
        self._sessions.pop(handle, None)
        if self._held.pop(handle, None) is not None:
            self._save()

    # What is known

    async def _wait_for_turn(self, uid: int) -> None:
        for buckets, who in zip(self._pace, (uid, None), strict=True):
            while not buckets.take(who, time.monotonic()):
                await asyncio.sleep(WAIT_SECONDS)

    def _check_quota(self, session: Session, count: int, first: int | None) -> None:
        """Raises UsageError when the user, or all of them, would have too much."""
        if first is not None and first < PRIVILEGED_PORTS:
            raise UsageError(f"ports below {PRIVILEGED_PORTS} are for root")
        theirs = [held for held in self._held.values() if held.uid == session.uid]
        ports = sum(len(lease.ports) for held in theirs if (lease := self._find(held.id)))
        settings = self._settings
        asking = [ports for uid, ports in self._asking if uid == session.uid]
        if len(theirs) + len(asking) >= settings.leases_per_user:
            raise UsageError(f"a user may hold {settings.leases_per_user} leases (api.leases_per_user); close some")
        if ports + sum(asking) + count > settings.ports_per_user:
            raise UsageError(f"a user may hold {settings.ports_per_user} ports (api.ports_per_user); close some")
        if len(self._held) + len(self._asking) >= ALL_LEASES:
            raise UsageError(f"programs hold {ALL_LEASES} leases already, and that is all for this host")

    def _find(self, lease_id: int) -> Lease | None:
        return next((lease for lease in self._host.leases if lease.id == lease_id), None)

    def _handle(self, lease_id: int) -> int | None:
        return next((held.handle for held in self._held.values() if held.id == lease_id), None)

    def _holder(self, lease: Lease) -> Session | None:
        handle = self._handle(lease.id)
        return None if handle is None else self._sessions.get(handle)

    def _describe(self, lease: Lease) -> dict[str, Any]:
        """A lease by the name under which its program knows it."""
        handle = self._handle(lease.id)
        return describe_lease(lease) | ({} if handle is None else {"id": f"{handle:016x}"})

    def _load(self) -> dict[int, _Held]:
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=list[_Held])
        except FileNotFoundError:
            kept = []
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s cannot be read, so programs have to ask anew: %s", self._path, error)
            kept = []
        return {each.handle: each for each in kept}

    def _save(self) -> None:
        try:
            files.replace(self._path, msgspec.json.encode(list(self._held.values())))
        except OSError as error:
            log.error("%s cannot be written: %s", self._path, error.strerror)


def _number(text: str) -> int:
    try:
        return int(text, 16)
    except (TypeError, ValueError):
        raise UsageError(f"{text!r} is no identifier of a lease") from None
