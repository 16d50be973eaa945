"""What the outside of the lab offers: echo (RFC 862) over UDP and TCP, and a web server.

``python -m dnat.lab.services PIDFILE`` listens, writes its process id, and goes on in the background: when
the command returns, the services are there. The web server answers ``/`` with the client's address and port
as it sees them, one line ``ADDRESS:PORT``, and ``/bytes/N`` with N octets.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import cast

ECHO_PORT = 7
HTTP_PORT = 80

MAX_BYTES = 1 << 30
"""Largest N of ``/bytes/N``."""

_CHUNK = bytes(65536)
_REQUEST_TIMEOUT = 30.0


class _UdpEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)

    def error_received(self, exc: Exception) -> None:
        # An ICMP error for an earlier answer; the asker is gone, which is nothing to stop for.
        pass


async def _tcp_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(len(_CHUNK)):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _REQUEST_TIMEOUT)
        method, path, *_ = [*head.decode("latin-1").split(" ", 2), "", ""]
        address, port = writer.get_extra_info("peername")
        wanted = re.fullmatch(r"/bytes/([0-9]{1,10})", path)
        if method != "GET":
            await _answer(writer, "405 Method Not Allowed", b"only GET\n")
        elif path == "/":
            await _answer(writer, "200 OK", f"{address}:{port}\n".encode())
        elif wanted and int(wanted[1]) <= MAX_BYTES:
            await _answer(writer, "200 OK", b"", int(wanted[1]))
        else:
            await _answer(writer, "404 Not Found", b"there are: / and /bytes/N\n")
    except (ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


async def _answer(writer: asyncio.StreamWriter, status: str, body: bytes, zeros: int = 0) -> None:
    fields = {"Content-Type": "text/plain", "Content-Length": len(body) + zeros, "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)
    while zeros > 0:
        writer.write(_CHUNK[:zeros])
        zeros -= len(_CHUNK)
        await writer.drain()
    await writer.drain()


def _listen(kind: socket.SocketKind, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, kind)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("0.0.0.0", port))
    if kind == socket.SOCK_STREAM:
        bound.listen(128)
    bound.setblocking(False)
    return bound


async def _serve(udp: socket.socket, echo: socket.socket, http: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await loop.create_datagram_endpoint(_UdpEcho, sock=udp)
    await asyncio.start_server(_tcp_echo, sock=echo)
    await asyncio.start_server(_http, sock=http)
    await stopped.wait()


def main(pid_file: Path) -> int:
    """Listen, go into the background, serve until SIGTERM; returns the exit code."""
    try:
        udp = _listen(socket.SOCK_DGRAM, ECHO_PORT)
        echo = _listen(socket.SOCK_STREAM, ECHO_PORT)
        http = _listen(socket.SOCK_STREAM, HTTP_PORT)
    except OSError as error:
        print(f"cannot listen on ports {ECHO_PORT} and {HTTP_PORT}: {error.strerror}", file=sys.stderr)
        return 4
    child = os.fork()
    if child:
        pid_file.write_text(f"{child}\n", encoding="ascii")
        return 0
    os.setsid()
    with Path(os.devnull).open("r+b", buffering=0) as nothing:
        for standard in range(3):
            os.dup2(nothing.fileno(), standard)
    asyncio.run(_serve(udp, echo, http))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
