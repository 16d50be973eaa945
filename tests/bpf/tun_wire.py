"""Two tun interfaces joined by a thread: a link whose packets have no link addresses, like that of PPP."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import threading

from dnat.system import netns

_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_TUN, _NO_PI, _VNET_HDR = 0x0001, 0x1000, 0x4000
_OFFLOADS = 0x01 | 0x02
"""Checksums and TCP segments are left to whoever reads: TUN_F_CSUM, TUN_F_TSO4."""
_VNET_HDR_OCTETS = 10
_LONGEST = 65536 + _VNET_HDR_OCTETS


class TunWire:
    """Interfaces in two namespaces; with ``offloads``, packets of up to 64 kB cross it as they are."""

    def __init__(self, ends: tuple[tuple[str, str], tuple[str, str]], *, offloads: bool = True) -> None:
        """Each end is a namespace and the name of the interface to make there."""
        self._ends = [open_tun(namespace, name, offloads=offloads) for namespace, name in ends]
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        one, other = self._ends
        while True:
            for fd in select.select([one, other, self._stop], [], [])[0]:
                if fd == self._stop:
                    return
                octets = os.read(fd, _LONGEST)
                try:
                    os.write(other if fd == one else one, octets)
                except OSError:
                    # The other end is down.
                    continue

    def close(self) -> None:
        """The interfaces go with it."""
        os.write(self._stopped, b"!")
        self._thread.join()
        for fd in (*self._ends, self._stop, self._stopped):
            os.close(fd)


def open_tun(namespace: str, name: str, *, offloads: bool) -> int:
    """Make an interface; the file descriptor is its far end."""
    with netns.enter(namespace):
        fd = os.open("/dev/net/tun", os.O_RDWR)
        flags = _TUN | _NO_PI | (_VNET_HDR if offloads else 0)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        if offloads:
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HDR_OCTETS))
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOADS)
    return fd
