"""The methods of the local API behind ``dnatctl key``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dnat import key_file
from dnat.daemon.api import Method
from dnat.errors import PeerError, UsageError
from dnat.instance import Instance
from dnat.pap.keyring import KeyRecord
from dnat.pap.messages import Result

if TYPE_CHECKING:
    from dnat.daemon.host import HostRole
    from dnat.daemon.server import ServerRole


class KeyMethods:
    """Keys of a server by name or identifier; the one key of a host without any."""

    def __init__(
        self, instance: Instance, server: Callable[[], ServerRole | None], host: Callable[[], HostRole | None]
    ) -> None:
        self._instance = instance
        self._server = server
        self._host = host

    def methods(self) -> dict[str, Method]:
        """All of them are root's."""
        return {
            "key_add": self._add,
            "key_list": self._list,
            "key_rotate": self._rotate,
            "key_revoke": self._revoke,
            "key_forget": self._forget,
            "key_install": self._install,
        }

    async def _add(self, name: str, host_id: str | None = None) -> dict[str, Any]:
        server = self._need_server()
        if not name or len(name) > 64 or not name.isprintable():
            raise UsageError("a key's name has 1 to 64 printable characters")
        identity = bytes.fromhex(host_id) if host_id else None
        if identity is not None and len(identity) != 16:
            raise UsageError("a host's identity has 32 hexadecimal digits; `dnatctl status` on the host prints it")
        record, changes = server.keyring.make(name, identity, server.now())
        await server.change_keys(changes)
        return {"key": key_file.to_text(record.key), **_describe(record)}

    async def _list(self) -> dict[str, Any]:
        server, host = self._server(), self._host()
        own = host.leasing.key.label if host is not None and host.leasing.key is not None else None
        return {"keys": [_describe(record) for record in server.keyring] if server is not None else [], "own": own}

    async def _rotate(self, keys: list[str], everybody: bool = False) -> dict[str, Any]:
        """Without keys: that of this host."""
        if not keys and not everybody:
            if not self._need_host().leasing.change_key():
                raise PeerError("a new key is being agreed on already, or this host does without; wait a minute")
            return {"keys": []}
        server = self._need_server()
        wanted = server.keyring if everybody else _find(server, keys)
        changes = server.keyring.rotate([record.key.id for record in wanted])
        await server.change_keys(changes)
        return {"keys": [_describe(change.record) for change in changes if hasattr(change, "record")]}

    async def _revoke(self, keys: list[str]) -> dict[str, Any]:
        server = self._need_server()
        records = _find(server, keys)
        leases = server.leases_of({record.host_id for record in records if record.host_id is not None})
        await server.change_keys(server.keyring.revoke([record.key.id for record in records]))
        await server.invalidate(leases, Result.ADMINISTRATIVE, "the key was revoked")
        return {"keys": [_describe(record) for record in records], "leases": len(leases)}

    async def _forget(self, keys: list[str]) -> dict[str, Any]:
        """Without keys: that of this host."""
        if not keys:
            host = self._need_host()
            self._instance.key_file.unlink(missing_ok=True)
            host.leasing.use_key(None)
            return {"keys": []}
        server = self._need_server()
        records = _find(server, keys)
        await server.change_keys(server.keyring.forget([record.key.id for record in records]))
        return {"keys": [_describe(record) for record in records]}

    async def _install(self, text: str) -> dict[str, Any]:
        key = key_file.from_text(text)
        host = self._need_host()
        key_file.save(self._instance.key_file, key)
        host.leasing.use_key(key)
        return {"own": key.label}

    def _need_server(self) -> ServerRole:
        server = self._server()
        if server is None:
            raise UsageError('keys are made, revoked and forgotten by name on the machine with the role "server"')
        return server

    def _need_host(self) -> HostRole:
        host = self._host()
        if host is None:
            raise UsageError('this machine is no "host", so it has no key of its own: name the keys')
        return host


def _find(server: ServerRole, keys: Iterable[str]) -> list[KeyRecord]:
    """The keys that these names and identifiers mean, each once. Raises UsageError."""
    found = {record.key.id: record for text in keys for record in server.keyring.find(text)}
    return list(found.values())


def _describe(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.key.label,
        "name": record.name,
        "host_id": record.host_id.hex() if record.host_id is not None else None,
        "state": record.state.value,
        "origin": "agreed" if record.agreed else "operator",
        "created_at": record.created_at,
        "until": record.until,
        "rotating": record.replace,
    }
