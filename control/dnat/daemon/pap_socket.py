"""A UDP socket on the LAN address that speaks PAP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address

from dnat.errors import PlatformError
from dnat.types import address_text, parse_address

Control = list[tuple[int, int, bytes]]
"""What the kernel says beside a datagram: the interface that it came in on."""
Receiver = Callable[[bytes, tuple[IPv4Address, int]], None]

AT_ONCE = 64
"""Datagrams taken in before everything else gets its turn: a flood must not starve commits and timers."""
BUFFER = 4 * 1024 * 1024
"""Octets the kernel keeps for us: what a thousand hosts say at the same moment."""
_LARGEST = 2048
"""Octets of a datagram that are looked at; a message has at most 1,200."""
_PKTINFO = struct.Struct("=i4s4s")
_IP_PKTINFO = 8
"""ip(7); not in the socket module of Python 3.11."""
_SO_RCVBUFFORCE = 33


class PapSocket:
    """Hands each datagram of the LAN to a receiver; sends datagrams.

    Errors of single sends are the network's: PAP repeats. Linux delivers to a LAN address whatever interface a datagram
    came in on (ip(7), weak host model), so that is looked at here.
    """

    def __init__(
        self, opened: socket.socket, receiver: Receiver, interface: str, pause: Callable[[], None] = lambda: None
    ) -> None:
        """``pause`` is called when the receiver has been given all that had come, or enough of it."""
        self.counters: Counter[str] = Counter()
        """Datagrams that were dropped, by reason."""
        self._socket = opened
        self._receiver = receiver
        self._pause = pause
        self._interface = interface
        self._indexes: set[int] = set()
        self._trusted: Control | None = None
        self._learn_indexes()
        asyncio.get_running_loop().add_reader(opened, self._readable)

    @classmethod
    async def open(
        cls,
        address: IPv4Address,
        port: int,
        receiver: Receiver,
        interface: str,
        pause: Callable[[], None] = lambda: None,
    ) -> PapSocket:
        """Bind to ``address``, and listen to what comes in on its interface. Raises PlatformError."""
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            opened.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            with contextlib.suppress(PermissionError):
                opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER)
            opened.bind((str(address), port))
            return cls(opened, receiver, interface, pause)
        except OSError as error:
            opened.close()
            raise PlatformError(
                f"UDP port {port} of {address} cannot be opened ({error.strerror}): is another program using it?"
            ) from None

    def send(self, datagram: bytes, to: tuple[IPv4Address, int]) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendto(datagram, (address_text(to[0]), to[1]))

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def _readable(self) -> None:
        self._take_in()
        self._pause()

    def _take_in(self) -> None:
        for _ in range(AT_ONCE):
            try:
                data, control, _, source = self._socket.recvmsg(_LARGEST, socket.CMSG_SPACE(_PKTINFO.size))
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error says no more than silence does
            if control == self._trusted or self._is_of_the_lan(control):
                self._receiver(data, (parse_address(source[0]), source[1]))
                if self._socket.fileno() < 0:
                    return
            else:
                self.counters["wrong-interface"] += 1

    def _is_of_the_lan(self, control: Control) -> bool:
        for level, kind, value in control:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                index = _PKTINFO.unpack(value[: _PKTINFO.size])[0]
                if index not in self._indexes:
                    self._learn_indexes()
                if index in self._indexes:
                    self._trusted = control
                    return True
        return False

    def _learn_indexes(self) -> None:
        """The interface's index, which changes when it is made anew; and that of ``lo``, for a host on this machine."""
        self._indexes, self._trusted = set(), None
        for name in (self._interface, "lo"):
            with contextlib.suppress(OSError):
                self._indexes.add(socket.if_nametoindex(name))
