"""Recording an interface of any network namespace into a pcap file by tcpdump, first packet to last."""

from __future__ import annotations

import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

from dnat.errors import PlatformError
from dnat.system import netns

SETTLE = 0.1
"""Seconds for packets that are on their way to the interface when a capture is stopped."""
DRAIN_TIMEOUT = 5.0
"""Seconds to wait until tcpdump has written what the kernel collected for it."""

SNAPLEN = 16384
"""Octets kept of a packet: more than any signalling message. In immediate mode a slot of the buffer has this size."""
BUFFER_KIB = 65536
"""Room for 4,096 packets while tcpdump does not get the processor."""

STATISTICS = re.compile(rb"(\d+) packets? captured\W+(\d+) packets? received by filter\W+(\d+) packets? dropped")


class Recorder:
    """One running capture. Use as a context manager: inside, every packet is in the file."""

    def __init__(self, namespace: str | None, interface: str, path: Path) -> None:
        """``namespace`` is a name under /run/netns, None the caller's own."""
        self.namespace = namespace
        self.interface = interface
        self.path = path
        self.dropped = 0
        """Packets that the kernel had no room for; known after ``stop``."""
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""

    def __enter__(self) -> Recorder:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 5.0) -> None:
        """Begin; returns when packets are being seen. Raises PlatformError when that cannot be."""
        if shutil.which("tcpdump") is None:
            raise PlatformError("tcpdump is not installed: apt-get install tcpdump")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PlatformError(f"{self.path} cannot be written: {error.strerror}") from None
        argv = ["tcpdump", "-i", self.interface, "-n", "--immediate-mode"]
        argv += ["-s", str(SNAPLEN), "-B", str(BUFFER_KIB)]
        # Without -Z it gives up root before it opens the file, which may lie in a directory of root's.
        argv += ["-U", "-Z", "root", "-w", str(self.path)]
        # Ctrl-C is for whoever started this, who then stops it in order.
        if self.namespace is None:
            self._process = subprocess.Popen(argv, stderr=subprocess.PIPE, start_new_session=True)
        else:
            self._process = netns.popen(argv, self.namespace, stderr=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + timeout
        while b"listening on" not in self._said:
            if not self._hear(deadline - time.monotonic()):
                self._kill()
                said = self._said.decode(errors="replace").strip().splitlines()
                raise PlatformError(f"tcpdump on {self._place}: {said[-1] if said else 'did not start'}")

    def stop(self) -> None:
        """Wait until the last packets are written, then end. Harmless when it is not running."""
        if self._process is None:
            return
        time.sleep(SETTLE)
        deadline = time.monotonic() + DRAIN_TIMEOUT
        # What comes after this moment is not ours to wait for: on a busy link there is always more.
        wanted = self._ask()[1]
        while self._ask()[0] < wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        self._process.send_signal(signal.SIGINT)
        while self._hear(deadline - time.monotonic()):
            pass
        self._kill()
        self.dropped = self._statistics()[-1][2]

    def _ask(self) -> tuple[int, int]:
        """How many packets tcpdump has written, how many the kernel has seen for it."""
        assert self._process is not None
        before = len(self._statistics())
        self._process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + DRAIN_TIMEOUT
        while len(found := self._statistics()) == before:
            if not self._hear(deadline - time.monotonic()):
                self._kill()
                raise PlatformError(f"tcpdump on {self._place} ended too early; {self.path} is not complete")
        written, seen, _ = found[-1]
        # On loopback the kernel counts every packet going out and coming in, libpcap keeps one.
        return written, seen // 2 if self.interface == "lo" else seen

    def _statistics(self) -> list[tuple[int, int, int]]:
        return [(int(a), int(b), int(c)) for a, b, c in STATISTICS.findall(self._said)]

    def _hear(self, timeout: float) -> bool:
        """Read what tcpdump says; False at its end or when the time is over."""
        assert self._process is not None and self._process.stderr is not None
        if not select.select([self._process.stderr], [], [], max(0.0, timeout))[0]:
            return False
        said = self._process.stderr.read1()  # type: ignore[attr-defined]
        self._said += said
        return bool(said)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()

    @property
    def _place(self) -> str:
        return self.interface if self.namespace is None else f"{self.interface} in {self.namespace}"
