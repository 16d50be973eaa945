"""Kamailio's life: started, watched, and ended with all of its processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnat import probe
from dnat.errors import NotRunningError, PlatformError
from dnat.sip import configuration, rpc
from dnat.system.journal import Entry, Handler

KIND = "SIP server"
"""Of journal entries."""
USER = "kamailio"
"""Made by the distribution's package; without it Kamailio runs as whoever starts it."""
SHARED_MEMORY, PRIVATE_MEMORY = 512, 16
"""MiB at most; 64 of shared memory ran out above 450 calls/s."""
START_SECONDS = 30.0
STOP_SECONDS = 4.0
KILL_SECONDS = 10.0
WATCH_SECONDS, AGAIN_SECONDS = 5.0, 1.0
"""How often it is asked whether it still answers; and again when it did not."""
ANSWER_SECONDS = 2.0
MISSES = 3
"""So many times in a row without an answer by any transport, and it hangs. A flood can make it miss one, or one
transport; to be started again because of a flood would help whoever sends it."""
LOG_BYTES = 8 << 20
"""The log is kept to this size: strangers can make Kamailio complain as often as they like."""


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


@dataclass(frozen=True, slots=True)
class Listener:
    """Where Kamailio is to answer."""

    kind: probe.Kind
    address: str
    port: int

    def answers(self, seconds: float) -> bool:
        """Whether a SIP request is answered within so long. Blocks."""
        return probe.ask(self.address, self.port, self.kind, seconds).outcome == "answered"


class Kamailio:
    """One running Kamailio."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path, listeners: Sequence[Listener]) -> None:
        self._process = process
        self._directory = directory
        self._listeners = listeners

    @classmethod
    async def start(cls, directory: Path, socket: Path, listeners: Sequence[Listener]) -> Kamailio:
        """Start it on ``directory/kamailio.cfg`` and wait until it answers everywhere. Raises PlatformError."""
        config, log = directory / "kamailio.cfg", directory / "kamailio.log"
        command = [configuration.program(), "-DD", "-E", "-f", str(config), "-Y", str(directory), "-w", str(directory)]
        # No pid file: it would keep Kamailio from starting beside a zombie of an earlier one.
        command += ["-m", str(SHARED_MEMORY), "-M", str(PRIVATE_MEMORY)]
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
        running = cls(process, directory, listeners)
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
        """Wait until it ends or hangs; says how that came. What is left of it then needs ``stop``."""
        misses = 0
        while misses < MISSES:
            try:
                async with asyncio.timeout(AGAIN_SECONDS if misses else WATCH_SECONDS):
                    status = await self._process.wait()
                return f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
            except TimeoutError:
                # Kamailio appends, so it goes on at the new end.
                if self._log.stat().st_size > LOG_BYTES:
                    os.truncate(self._log, 0)
            misses = 0 if await self._answers_somewhere() else misses + 1
        return f"did not answer {MISSES} times in a row"

    async def stop(self) -> None:
        """End it, kindly and then not; returns when none of its processes is left."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await self._process.wait()
        # Its children hold the ports, and outlive a main process that was killed.
        await asyncio.to_thread(_kill_all, self._directory)
        await self._process.wait()

    async def _answers_somewhere(self) -> bool:
        asked = [asyncio.to_thread(listener.answers, ANSWER_SECONDS) for listener in self._listeners]
        return any(await asyncio.gather(*asked))

    async def _await_ready(self, socket: Path) -> None:
        """Wait for its own interface and every transport: a main process whose children failed answers by some."""
        deadline = time.monotonic() + START_SECONDS
        silent = list(self._listeners)
        while time.monotonic() < deadline:
            if self._process.returncode is not None:
                raise PlatformError(f"Kamailio ended at once: {self._last_words()} (log: {self._log})")
            try:
                if socket.exists():
                    await asyncio.to_thread(rpc.call, socket, "core.uptime", timeout=0.5)
                    while await asyncio.to_thread(silent[0].answers, 0.5):
                        silent.pop(0)
                        if not silent:
                            return
            except NotRunningError:
                pass
            await asyncio.sleep(0.05)
        raise PlatformError(
            f"Kamailio did not get ready within {START_SECONDS:g} s: {self._last_words()} (log: {self._log})"
        )

    @property
    def _log(self) -> Path:
        return self._directory / "kamailio.log"

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if "CRITICAL" in line or "ERROR" in line), "no word")


def end_left_over(directory: Path) -> bool:
    """End all processes of a Kamailio that a killed daemon left behind; whether there were any.

    Nobody else's is touched. Raises PlatformError if one does not end.
    """
    left = _processes(directory)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while _processes(directory) and time.monotonic() < deadline:
        time.sleep(0.02)
    _kill_all(directory)
    return bool(left)


def undo(entry: Entry) -> None:
    """Handler of journal entries of this kind."""
    end_left_over(Path(entry.facts["directory"]))


HANDLERS: dict[str, Handler] = {KIND: undo}


def _processes(directory: Path) -> list[int]:
    """All of the Kamailio that has this directory's configuration, whoever started it. Zombies are not among them."""
    own = str(directory / "kamailio.cfg").encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            program, *arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if program.endswith(b"kamailio") and own in arguments:
            found.append(int(entry.name))
    return found


def _kill_all(directory: Path) -> None:
    """End them at once, and wait until they are gone. Raises PlatformError if one does not go."""
    deadline = time.monotonic() + KILL_SECONDS
    while left := _processes(directory):
        if time.monotonic() > deadline:
            raise PlatformError(f"Kamailio's process {left[0]} does not end")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
