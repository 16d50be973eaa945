"""A UDP socket on the LAN address that speaks PAP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import cast

from dnat.errors import PlatformError

Receiver = Callable[[bytes, tuple[IPv4Address, int]], None]


class PapSocket(asyncio.DatagramProtocol):
    """Hands each datagram to a receiver; sends datagrams. Errors of single sends are the network's: PAP repeats."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def open(cls, address: IPv4Address, port: int, receiver: Receiver) -> PapSocket:
        """Bind to ``address``. Raises PlatformError."""
        loop = asyncio.get_running_loop()
        try:
            _, protocol = await loop.create_datagram_endpoint(lambda: cls(receiver), local_addr=(str(address), port))
        except OSError as error:
            raise PlatformError(
                f"UDP port {port} of {address} cannot be opened ({error.strerror}): is another program using it?"
            ) from None
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._receiver(data, (IPv4Address(addr[0]), addr[1]))

    def error_received(self, exc: Exception) -> None:
        """ICMP errors say no more than silence does."""

    def send(self, datagram: bytes, to: tuple[IPv4Address, int]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(datagram, (str(to[0]), to[1]))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
