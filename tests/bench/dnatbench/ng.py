"""rtpengine's control protocol: bencode over UDP, each message with a cookie before it."""

from __future__ import annotations

import itertools
import socket
from typing import Any

_cookies = itertools.count(1)


def ask(control: socket.socket, question: dict[str, Any]) -> dict[str, Any]:
    """The answer to one question. Raises RuntimeError when rtpengine refuses, OSError when it is not there."""
    cookie = f"c{next(_cookies)} ".encode()
    control.send(cookie + _encode(question))
    answer = control.recv(65535)
    assert answer.startswith(cookie)
    decoded, _ = _decode(answer[len(cookie) :])
    if decoded["result"] == b"error":
        raise RuntimeError(f"rtpengine: {decoded}")
    return dict(decoded)


def _encode(value: Any) -> bytes:
    if isinstance(value, str):
        return _encode(value.encode())
    if isinstance(value, bytes):
        return str(len(value)).encode() + b":" + value
    if isinstance(value, list):
        return b"l" + b"".join(map(_encode, value)) + b"e"
    return b"d" + b"".join(_encode(key) + _encode(value[key]) for key in sorted(value)) + b"e"


def _decode(data: bytes) -> tuple[Any, bytes]:
    """A value, and what comes after it."""
    head = data[:1]
    if head == b"i":
        number, _, rest = data[1:].partition(b"e")
        return int(number), rest
    if head in (b"l", b"d"):
        values, rest = [], data[1:]
        while not rest.startswith(b"e"):
            value, rest = _decode(rest)
            values.append(value)
        if head == b"l":
            return values, rest[1:]
        return {key.decode(): value for key, value in zip(values[::2], values[1::2], strict=True)}, rest[1:]
    length, _, rest = data.partition(b":")
    return rest[: int(length)], rest[int(length) :]


def sdp(address: str, port: int) -> str:
    """A session with one stream of G.711."""
    lines = ["v=0", f"o=- 1 1 IN IP4 {address}", "s=-", f"c=IN IP4 {address}", "t=0 0", f"m=audio {port} RTP/AVP 0", ""]
    return "\r\n".join(lines)
