"""One virtual machine, from start to stop."""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnatvm.images import Kernel

HERE = Path(__file__).parent
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive",
}
BOOT_SECONDS = 600
LIFETIME_SECONDS = 3600
"""A guest ends after so long whatever happens to those who started it."""

AGENT_UNIT = """\
[Unit]
Description=Commands from outside
[Service]
ExecStart=/usr/bin/python3 /vm/agent.py
KillMode=process
"""
INIT = """\
#!/bin/sh
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname guest
ip link set lo up
exec /usr/bin/python3 /vm/agent.py
"""
"""Process 1 where Debian's own is not wanted."""
TARGET_LINK = "etc/systemd/system/multi-user.target.wants/vm-agent.service"


class GuestError(Exception):
    """A guest did not do what it was told; says what it was and what it said."""


@dataclass(frozen=True, slots=True)
class Nic:
    """A network card: a datagram socket for frames, and the one at the far end of the cable."""

    mac: str
    local: Path
    remote: Path


@dataclass(frozen=True, slots=True)
class Said:
    """How a program ended, and what it said."""

    code: int
    out: str
    err: str


@functools.cache
def accelerator(kernel: Kernel) -> str:
    """``kvm`` if a guest lives under it, else ``tcg``: that /dev/kvm opens is no proof."""
    if not Path("/dev/kvm").exists():
        return "tcg"
    command = [*_machine("kvm"), "-m", "256", *_boot(kernel, "vm.probe"), "-serial", "stdio"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return "tcg"
    return "kvm" if b"guest-alive" in done.stdout else "tcg"


def _machine(kind: str) -> list[str]:
    basics = "-nodefaults -no-user-config -display none -no-reboot -M q35 -cpu max"
    return ["qemu-system-x86_64", *basics.split(), "-accel", kind]


def _boot(kernel: Kernel, words: str) -> list[str]:
    line = f"console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off {words}"
    return ["-kernel", str(kernel.image), "-initrd", str(kernel.initrd), "-append", line]


def job_archive(files: dict[str, bytes], trees: dict[str, Path]) -> bytes:
    """tar archive of what a guest gets: contents by path, and directories of this machine by path, without /."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
        for name, tree in trees.items():
            for path in sorted(tree.rglob("*")):
                # No directories: one would replace a link to a directory in the guest.
                if "__pycache__" not in path.parts and (path.is_symlink() or path.is_file()):
                    tar.add(path, f"{name}/{path.relative_to(tree)}".lstrip("/"), filter=_as_root)
        link = tarfile.TarInfo(TARGET_LINK)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/systemd/system/vm-agent.service"
        tar.addfile(link)
    return buffer.getvalue()


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def agent_files() -> dict[str, bytes]:
    """What a job needs so that the guest listens."""
    return {
        "vm/agent.py": (HERE / "agent.py").read_bytes(),
        "vm/init": INIT.encode(),
        "etc/systemd/system/vm-agent.service": AGENT_UNIT.encode(),
    }


class Guest:
    """A virtual machine. Use as a context manager: entering boots it, leaving ends it.

    ``directory`` gets the sockets (keep its path short), the console's log and the job. With ``systemd`` Debian boots
    as usual, otherwise nothing runs but the agent.
    """

    def __init__(
        self,
        name: str,
        kernel: Kernel,
        disk: Path,
        job: bytes,
        directory: Path,
        *,
        nics: Sequence[Nic] = (),
        systemd: bool = False,
        memory: int = 1024,
        cores: int = 1,
    ) -> None:
        self.name = name
        self.console = directory / f"{name}.console"
        self._socket = directory / f"{name}.agent"
        (job_file := directory / f"{name}.job").write_bytes(job)
        # Nobody logs in; without udev systemd would wait for the terminal's device.
        init = "/sbin/init systemd.mask=serial-getty@ttyS0.service" if systemd else "/vm/init"
        # Its own lifetime, since nothing else ends it when whoever started it was killed before it booted.
        # In the foreground: with whoever starts it in one group, which can be ended.
        self._command = ["timeout", "--foreground", "--kill-after=5", str(LIFETIME_SECONDS)]
        kind = accelerator(kernel)
        self._command += _machine(kind)
        if kind == "tcg" and not nics:
            # Alone, its clock goes by what it has done: no wait of its ends early because this machine is busy.
            self._command += ["-icount", "shift=2,sleep=on", "-rtc", "clock=vm"]
        self._command += ["-m", str(memory), "-smp", str(cores), *_boot(kernel, f"vm.init={init}")]
        drives = ((disk, "snapshot=on"), (kernel.modules, "readonly=on"), (job_file, "readonly=on"))
        for number, (path, how) in enumerate(drives):
            self._command += ["-drive", f"file={path},format=raw,if=none,id=d{number},{how}"]
            self._command += ["-device", f"virtio-blk-pci,drive=d{number}"]
        self._command += ["-serial", f"file:{self.console}", "-device", "virtio-serial-pci"]
        self._command += ["-chardev", f"socket,id=agent,path={self._socket},server=on,wait=off"]
        self._command += ["-device", "virtserialport,chardev=agent,name=dnat.agent"]
        for number, nic in enumerate(nics):
            ends = f"local.type=unix,local.path={nic.local},remote.type=unix,remote.path={nic.remote}"
            self._command += ["-netdev", f"dgram,id=n{number},{ends}"]
            # Without an option ROM, which would be looked for in files that are not installed.
            self._command += ["-device", f"virtio-net-pci,netdev=n{number},mac={nic.mac},romfile="]
        self._numbers = itertools.count(1)
        self._answers: dict[int, dict[str, object]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._process: subprocess.Popen[bytes]
        self._line: socket.socket

    def __enter__(self) -> Guest:
        with self.console.with_suffix(".qemu").open("wb") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._connect()
            self.run("true", seconds=BOOT_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        if hasattr(self, "_line"):
            self._line.close()

    def run(
        self, *argv: str, code: int | None = 0, seconds: float = 300, data: bytes = b"", **environment: str
    ) -> Said:
        """Run a program there. ``code`` is the exit code that is wanted, None for any. Raises GuestError."""
        number = next(self._numbers)
        request = {
            "id": number,
            "argv": argv,
            "env": ENVIRONMENT | environment,
            "input": base64.b64encode(data).decode(),
            "seconds": seconds,
        }
        with self._changed:
            self._line.sendall(json.dumps(request).encode() + b"\n")
            arrived = self._changed.wait_for(lambda: number in self._answers or self._closed, seconds + 30)
            answer = self._answers.pop(number, None)
        if answer is None:
            why = "does not answer" if not arrived else "went away"
            raise GuestError(f"{self.name} {why}; its console says:\n{self._console_end()}")
        out, err = (base64.b64decode(str(answer[key])).decode(errors="replace") for key in ("out", "err"))
        said = Said(int(str(answer["code"])), out, err)
        if code is not None and said.code != code:
            raise GuestError(f"{self.name}: {' '.join(argv)} exited {said.code}: {said.out}{said.err}")
        return said

    def _connect(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            line = socket.socket(socket.AF_UNIX)
            try:
                line.connect(str(self._socket))
                break
            except OSError:
                line.close()
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = self.console.with_suffix(".qemu").read_text(errors="replace")
                    raise GuestError(f"{self.name} does not start: {said}") from None
                time.sleep(0.05)
        self._line = line
        threading.Thread(target=self._read, name=f"{self.name}-agent", daemon=True).start()

    def _read(self) -> None:
        data = b""
        try:
            while chunk := self._line.recv(1 << 20):
                *answers, data = (data + chunk).split(b"\n")
                with self._changed:
                    for text in answers:
                        answer = json.loads(text)
                        self._answers[answer["id"]] = answer
                    self._changed.notify_all()
        except OSError:
            pass
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _console_end(self) -> str:
        try:
            return "\n".join(self.console.read_text(errors="replace").splitlines()[-20:])
        except FileNotFoundError:
            return "(nothing)"
