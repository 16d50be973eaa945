"""Kamailio's life: started in a session of its own, so that all its processes end together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import time
from pathlib import Path

from dnat.errors import NotRunningError, PlatformError
from dnat.sip import configuration, rpc
from dnat.system.journal import Entry, Handler

KIND = "SIP server"
"""Of journal entries."""
USER = "kamailio"
"""Made by the distribution's package; without it Kamailio runs as whoever starts it."""
SHARED_MEMORY, PRIVATE_MEMORY = 512, 16
"""MiB at most; 64 of shared memory ran out above 450 calls/s."""
START_SECONDS = 10.0
STOP_SECONDS = 4.0
LOG_BYTES = 8 << 20
"""The log is kept to this size: strangers can make Kamailio complain as often as they like."""
LOG_CHECK_SECONDS = 20.0


def user_ids() -> tuple[int, int] | None:
    """User and group that Kamailio runs as; None where it keeps ours."""
    try:
        entry = pwd.getpwnam(USER)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def own(path: Path) -> None:
    """Give a file or directory to Kamailio's user."""
    if ids := user_ids():
        os.chown(path, *ids)


class Kamailio:
    """One running Kamailio."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self._process = process
        self._directory = directory

    @classmethod
    async def start(cls, directory: Path, socket: Path) -> Kamailio:
        """Start it on ``directory/kamailio.cfg`` and wait until it answers. Raises PlatformError."""
        config, log = directory / "kamailio.cfg", directory / "kamailio.log"
        command = [configuration.program(), "-DD", "-E", "-f", str(config), "-Y", str(directory), "-w", str(directory)]
        command += ["-m", str(SHARED_MEMORY), "-M", str(PRIVATE_MEMORY), "-P", str(directory / "kamailio.pid")]
        if user_ids():
            command += ["-u", USER, "-g", USER]
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
            )
        (directory / "main.pid").write_text(f"{process.pid}\n", encoding="ascii")
        running = cls(process, directory)
        try:
            await running._await_ready(socket)
        except BaseException:
            await running.stop()
            raise
        return running

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> str:
        """Wait for its end; says how that came."""
        while True:
            try:
                async with asyncio.timeout(LOG_CHECK_SECONDS):
                    status = await self._process.wait()
                break
            except TimeoutError:
                # Kamailio appends, so it goes on at the new end.
                if self._log.stat().st_size > LOG_BYTES:
                    os.truncate(self._log, 0)
        # Its children hold the ports.
        _kill_group(self._process.pid)
        return f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"

    async def stop(self) -> None:
        """End it, kindly and then not."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                _kill_group(self._process.pid)
                await self._process.wait()
        _kill_group(self._process.pid)
        (self._directory / "main.pid").unlink(missing_ok=True)

    async def _await_ready(self, socket: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.returncode is not None:
                raise PlatformError(f"Kamailio ended at once: {self._last_words()} (log: {self._log})")
            if socket.exists():
                try:
                    await asyncio.to_thread(rpc.call, socket, "core.uptime", timeout=0.5)
                    return
                except NotRunningError:
                    pass
            await asyncio.sleep(0.05)
        raise PlatformError(f"Kamailio did not get ready within {START_SECONDS:g} s (log: {self._log})")

    @property
    def _log(self) -> Path:
        return self._directory / "kamailio.log"

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if "CRITICAL" in line or "ERROR" in line), "no word")


def end_left_over(directory: Path) -> bool:
    """End a Kamailio that a killed daemon left behind; whether there was one. Nobody else's is touched."""
    pid_file = directory / "main.pid"
    try:
        pid = int(pid_file.read_text(encoding="ascii"))
        mine = str(directory / "kamailio.cfg").encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        mine = False
    pid_file.unlink(missing_ok=True)
    if not mine:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    _kill_group(pid)
    return True


def undo(entry: Entry) -> None:
    """Handler of journal entries of this kind."""
    end_left_over(Path(entry.facts["directory"]))


HANDLERS: dict[str, Handler] = {KIND: undo}


def _alive(pid: int) -> bool:
    try:
        # A zombie's command line is empty.
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
