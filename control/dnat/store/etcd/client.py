"""Calls to an etcd cluster: one member at a time, the next one when it fails; TLS where configured.

The messages and stubs are aetcd's. Its own client knows one member and no TLS, and hands out the events of a
transaction one by one, so channels and watches are made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A daemon starts programs (compiler, Kamailio) by fork and exec, which gRPC's own fork handlers would only delay.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from aetcd import rpc

from dnat.store.base import StoreError

CALL_SECONDS = 1.0
"""How long one member may take."""
PATIENCE_SECONDS = 3.0
"""How long all of them may take together: an election of a new leader takes one to two seconds."""
PAUSE_SECONDS = 0.1
"""Between two attempts."""
PAGE = 8192
"""Keys read at once."""
HEAD = (("hasleader", "true"),)
"""A member that is cut off from the others says so instead of staying silent."""
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the cluster is, and how to speak to it."""

    endpoints: tuple[str, ...]
    """Its members, as ``10.66.0.7:2379``."""
    prefix: str = "/dnat/"
    """What the keys of this LAN begin with."""
    ca: Path | None = None
    """PEM file of who signed the members' certificates; None for no TLS."""
    certificate: Path | None = None
    """PEM file that shows who we are."""
    key: Path | None = None
    """Of ``certificate``."""

    def path(self, *parts: str) -> bytes:
        """The key below the prefix."""
        return (self.prefix + "/".join(parts)).encode()


class Compacted(StoreError):
    """The cluster has forgotten the changes that a watch was to begin with: everything must be read anew."""


class EtcdClient:
    """Calls that may be repeated are, with the next member, until ``seconds`` are over."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._credentials = _credentials(cluster)
        self._member = 0
        self._channel: Any = None

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def get(self, key: bytes, seconds: float = PATIENCE_SECONDS) -> tuple[Any, Any]:
        """The pair of a key (None if there is none), and the answer's header. Raises StoreError."""
        answer = await self._call(lambda: rpc.KVStub(self._open()).Range, rpc.RangeRequest(key=key), seconds)
        return (answer.kvs[0] if answer.kvs else None), answer.header

    async def read(
        self, start: bytes, end: bytes | None = None, seconds: float = PATIENCE_SECONDS
    ) -> tuple[list[Any], Any]:
        """Every pair from ``start`` to below ``end`` (by default of that prefix), all at the revision of the header.

        Raises StoreError.
        """
        found: list[Any] = []
        header, position = None, start
        end = end or end_of(start)
        while True:
            request = rpc.RangeRequest(
                key=position, range_end=end, limit=PAGE, revision=header.revision if header else 0
            )
            answer = await self._call(lambda: rpc.KVStub(self._open()).Range, request, seconds)
            header = header or answer.header
            found += answer.kvs
            if not answer.more:
                return found, header
            position = answer.kvs[-1].key + b"\0"

    async def transact(
        self,
        compare: Sequence[Any],
        success: Sequence[Any],
        failure: Sequence[Any] = (),
        seconds: float = PATIENCE_SECONDS,
    ) -> Any:
        """One transaction, which the caller has made safe to repeat. Raises StoreError."""
        request = rpc.TxnRequest(compare=compare, success=success, failure=failure)
        return await self._call(lambda: rpc.KVStub(self._open()).Txn, request, seconds)

    async def grant(self, seconds: int) -> int:
        """A lease in etcd's sense: keys under it vanish unless it is kept alive. Raises StoreError."""
        request = rpc.LeaseGrantRequest(TTL=seconds)
        answer = await self._call(lambda: rpc.LeaseStub(self._open()).LeaseGrant, request, PATIENCE_SECONDS)
        return int(answer.ID)

    async def keep_alive(self, lease: int) -> bool:
        """Prolong a lease; False if it has ended. Raises StoreError."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                call = rpc.LeaseStub(self._open()).LeaseKeepAlive(metadata=HEAD)
                await call.write(rpc.LeaseKeepAliveRequest(ID=lease))
                answer = await call.read()
                call.cancel()
        except (rpc.AioRpcError, TimeoutError, *_LEFT) as error:
            _raise_if_cancelled(error)
            name = self._name()
            await self._leave(self._channel)
            raise StoreError(f"etcd at {name} does not answer: {_words(error)}") from None
        return answer is not grpc.aio.EOF and answer.TTL > 0

    async def revoke(self, lease: int) -> None:
        """End a lease, and the keys under it. Raises StoreError."""
        await self._call(lambda: rpc.LeaseStub(self._open()).LeaseRevoke, rpc.LeaseRevokeRequest(ID=lease), 1.0)

    async def watch(self, prefix: bytes, revision: int) -> AsyncIterator[Any]:
        """The changes below a prefix from a revision on: answers that carry whole revisions, the first without events.

        Raises Compacted, or StoreError when the member fails or is cut off: begin again after the last revision seen.
        """
        channel = self._open()
        call = rpc.WatchStub(channel).Watch(metadata=HEAD)
        try:
            create = rpc.WatchCreateRequest(key=prefix, range_end=end_of(prefix), start_revision=revision)
            # A member that ends just then may leave the question unanswered for ever.
            async with asyncio.timeout(PATIENCE_SECONDS):
                await call.write(rpc.WatchRequest(create_request=create))
                answer = await call.read()
            while answer is not grpc.aio.EOF:
                if answer.compact_revision:
                    raise Compacted(f"the cluster remembers nothing before revision {answer.compact_revision}")
                if answer.canceled:
                    raise StoreError(f"etcd at {self._name()} ended the watch: {answer.cancel_reason}")
                yield answer
                answer = await call.read()
            raise StoreError(f"etcd at {self._name()} ended the watch")
        except (rpc.AioRpcError, TimeoutError, *_LEFT) as error:
            _raise_if_cancelled(error)
            name = self._name()
            await self._leave(channel)
            raise StoreError(f"etcd at {name} ended the watch: {_words(error)}") from None
        finally:
            call.cancel()

    async def _call(self, stub: Callable[[], Any], request: Any, seconds: float) -> Any:
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            left = deadline - asyncio.get_running_loop().time()
            method, channel = stub(), self._channel
            try:
                return await method(request, timeout=max(0.05, min(left, CALL_SECONDS)), metadata=HEAD)
            except rpc.AioRpcError as error:
                if error.code() in _FINAL:
                    raise StoreError(f"etcd at {self._name()} refuses: {error.details()}") from None
                name, words = self._name(), _words(error)
            except _LEFT as error:
                _raise_if_cancelled(error)
                name, words = self._name(), _words(error)
            await self._leave(channel)
            if asyncio.get_running_loop().time() + PAUSE_SECONDS >= deadline:
                raise StoreError(
                    f"the lease store (etcd at {name}) does not answer: {words}. Is etcd up there? See store.endpoints"
                )
            await asyncio.sleep(PAUSE_SECONDS)

    def _open(self) -> Any:
        if self._channel is None:
            target = self.cluster.endpoints[self._member]
            if self._credentials is None:
                self._channel = rpc.insecure_channel(target, options=_OPTIONS)
            else:
                self._channel = rpc.secure_channel(target, self._credentials, options=_OPTIONS)
        return self._channel

    async def _leave(self, channel: Any) -> None:
        """A call on this channel failed: go on with the next member, unless another call has seen to that."""
        if channel is not None and channel is self._channel:
            self._channel = None
            self._member = (self._member + 1) % len(self.cluster.endpoints)
            with contextlib.suppress(Exception):
                await channel.close()

    def _name(self) -> str:
        return self.cluster.endpoints[self._member]


_LEFT = (asyncio.CancelledError, asyncio.InvalidStateError, grpc.aio.UsageError)
"""How a call ends when another one has left the member, and closed the channel."""
_FINAL = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
)


def end_of(prefix: bytes) -> bytes:
    """The first key after all that begin with ``prefix``, whose last octet is below 255."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def put(key: bytes, value: bytes, lease: int = 0) -> Any:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease))


def delete(key: bytes, end: bytes = b"") -> Any:
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=end))


def fetch(key: bytes) -> Any:
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=key))


def unchanged(key: bytes, revision: int) -> Any:
    """That a key was changed last at a revision; 0: that there is none."""
    return rpc.Compare(
        key=key, target=rpc.Compare.CompareTarget.MOD, result=rpc.Compare.CompareResult.EQUAL, mod_revision=revision
    )


def equals(key: bytes, value: bytes) -> Any:
    """That a key has this value."""
    return rpc.Compare(
        key=key, target=rpc.Compare.CompareTarget.VALUE, result=rpc.Compare.CompareResult.EQUAL, value=value
    )


def _raise_if_cancelled(error: BaseException) -> None:
    """If it is the caller's task that is to end, and not the channel that was closed."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


def _words(error: BaseException) -> str:
    text = error.details() if isinstance(error, rpc.AioRpcError) else str(error)
    return " ".join(str(text or type(error).__name__).split())[:200]


def _credentials(cluster: Cluster) -> Any:
    if cluster.ca is None:
        return None
    try:
        key = cluster.key.read_bytes() if cluster.key else None
        chain = cluster.certificate.read_bytes() if cluster.certificate else None
        return grpc.ssl_channel_credentials(cluster.ca.read_bytes(), key, chain)
    except OSError as error:
        raise StoreError(f"store: {error.filename} cannot be read: {error.strerror}") from None
