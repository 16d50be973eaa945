"""A machine made of a Debian root: own file system, processes and users of its own network namespace, no systemd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dnat.system import netns

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

INIT = """
import os, signal, subprocess, sys
root, *binds = sys.argv[1:]
for kind, where in (("proc", "proc"), ("sysfs", "sys"), ("tmpfs", "run"), ("tmpfs", "tmp")):
    subprocess.run(["mount", "-t", kind, kind, f"{root}/{where}"], check=True)
for path in ("/dev", *binds):
    os.makedirs(root + path, exist_ok=True)
    subprocess.run(["mount", "--rbind", path, root + path], check=True)
os.chroot(root)
os.chdir("/")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are reaped by the kernel
print("ready", flush=True)
while True:
    signal.pause()
"""


class Machine:
    """Runs from ``start`` to ``stop``; what it writes goes to a layer of its own above ``lower``.

    It sees the directories ``binds`` of this machine, too, where they are here.
    """

    def __init__(
        self, name: str, lower: tuple[Path, ...], work: Path, namespace: str, binds: tuple[Path, ...] = ()
    ) -> None:
        self.name = name
        self._binds = binds
        self.root, self.upper = work / name / "root", work / name / "upper"
        self._lower, self._scratch, self._namespace = lower, work / name / "scratch", namespace
        self._init: subprocess.Popen[str]

    def start(self) -> Machine:
        for directory in (self.root, self.upper, self._scratch):
            directory.mkdir(parents=True)
        layers = ":".join(str(path) for path in self._lower)
        options = f"lowerdir={layers},upperdir={self.upper},workdir={self._scratch}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "test-root", self.root], check=True)
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", sys.executable, "-c", INIT, str(self.root)]
        command += map(str, self._binds)
        self._init = netns.popen(command, self._namespace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        self._pid = int(children[0])
        return self

    def stop(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        # unshare has a word to say about that.
        self._init.communicate(timeout=10)
        deadline = time.monotonic() + 10
        while subprocess.run(["umount", self.root], check=False, capture_output=True).returncode:
            assert time.monotonic() < deadline, f"{self.root} stays busy"
            time.sleep(0.1)

    def run(self, *command: str, code: int | None = 0, seconds: float = 120, **options: str) -> str:
        """Run a program there; returns all that it said. ``code`` is the exit code that is wanted, None for any."""
        where = ["nsenter", "--target", str(self._pid), "--mount", "--pid", "--net", "--root", "--wd"]
        done = subprocess.run(
            [*where, *command],
            env=ENVIRONMENT | options,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        said = f"{self.name}: {' '.join(command)} exited {done.returncode}: {done.stdout}"
        assert code is None or done.returncode == code, said
        return done.stdout

    def alive(self, pid: str) -> bool:
        """Whether a process of the machine's numbering is there."""
        return self.run("sh", "-c", f"kill -0 {pid} 2> /dev/null && echo yes", code=None) != ""

    def files(self) -> dict[str, tuple[int, str]]:
        """Every file of its own file system: mode, and size or where a link leads."""
        found = {}
        for directory, names, files in os.walk(self.root):
            if directory == str(self.root):
                names[:] = [name for name in names if name not in ("dev", "proc", "sys")]
            for name in (*names, *files):
                path = Path(directory, name)
                status = path.lstat()
                what = str(path.readlink()) if path.is_symlink() else "" if path.is_dir() else str(status.st_size)
                found[str(path.relative_to(self.root))] = (status.st_mode, what)
        return found
