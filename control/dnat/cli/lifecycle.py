"""``dnatctl up``, ``down`` and ``status``: the daemon's life."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from dnat import config as configuration
from dnat import errors, pid_file
from dnat.cli.console import output_option
from dnat.client import Client
from dnat.errors import AlreadyUpError, DnatError, NotAnsweringError, NotRunningError, PlatformError
from dnat.instance import Instance

START_SECONDS = 150.0
"""How long ``up`` waits for a daemon that somebody else is starting: as long as compiling may take."""
STOP_SECONDS = 10.0
QUIET_SECONDS = 1.5
"""How long ``up`` says nothing to a person who waits for it."""


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="Configuration file.  [/etc/dnat/dnat.toml]")
@click.option("--foreground", is_flag=True, help="Stay in the foreground, for service managers.")
def up(path: Path | None, foreground: bool) -> None:
    """Take up this machine's roles.

    By default those of a host, whose server is the default gateway. Returns when the data plane carries traffic. Doing
    it twice is harmless.

    \b
    Example:  sudo dnatctl up
    """
    from dnat.system.netns import require_root

    require_root()
    instance = Instance.current()
    path = path or instance.configuration()
    config = configuration.load(path)
    if foreground:
        from dnat.daemon.main import run

        keep(instance, path)
        sys.exit(run(config))
    summary = running(instance)
    if summary is None:
        try:
            click.echo(f"up: {start(instance, path)}")
            return
        except AlreadyUpError:
            # Somebody else was quicker.
            if (summary := running(instance)) is None:
                raise
    click.echo(f"already up: {summary}")


@click.command()
def down() -> None:
    """Give the ports back and restore what `dnatctl up` changed.

    Addresses, routes, sysctls, filters and nftables are as they were before. Works as well after the daemon was killed.

    \b
    Example:  sudo dnatctl down
    """
    from dnat.system.netns import require_root
    from dnat.teardown import tear_down

    require_root()
    instance = Instance.current()
    stopped = _stop(instance)
    problems = tear_down(instance)
    for problem in problems:
        click.echo(f"could not be restored: {problem}", err=True)
    if problems:
        raise PlatformError("some changes could not be undone; they are listed above")
    click.echo("down: everything is as it was" if stopped else "nothing was up here")


@click.command()
@output_option
def status(output: str) -> None:
    """Say whether dnat is up here, and with which roles. Exit code 5 when it is not.

    \b
    Examples:  dnatctl status
               dnatctl status -o json | jq .summary
    """
    instance = Instance.current()
    try:
        with Client(instance.socket) as client:
            answer = client.call("status")
    except NotAnsweringError:
        raise _hangs(instance) from None
    except NotRunningError:
        if (pid := pid_file.holder(instance.pid_file)) is not None:
            raise NotRunningError(f"the daemon (process {pid}) is not up yet; what it does: {instance.log}") from None
        if instance.journal.exists():
            raise NotRunningError(
                "the daemon is not running, but its data plane still works: `sudo dnatctl up` takes it up again,"
                " `sudo dnatctl down` removes it"
            ) from None
        raise
    if output == "json":
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo(f"up as {', '.join(answer['roles'])} (instance {answer['instance']}, process {answer['pid']})")
    for line in answer["summary"]:
        click.echo(f"  {line}")
    if answer["host_id"]:
        click.echo(f"  host identity {answer['host_id']}")


def running(instance: Instance) -> str | None:
    """What the running daemon says of itself, as soon as it is up; None when there is none.

    Raises NotAnsweringError: only one that is up listens at all.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with Client(instance.socket) as client:
                return "; ".join(client.call("status")["summary"])
        except NotAnsweringError:
            raise _hangs(instance) from None
        except NotRunningError:
            if pid_file.holder(instance.pid_file) is None or time.monotonic() > deadline:
                return None
        time.sleep(0.05)


def _hangs(instance: Instance) -> NotAnsweringError:
    pid = pid_file.holder(instance.pid_file)
    return NotAnsweringError(
        f"the daemon (process {pid}) does not answer, but its data plane still works: `sudo kill -9 {pid}`, then"
        f" `sudo dnatctl up`, take it up anew without losing a call; its log: {instance.log}"
    )


def unit(instance: Instance) -> str | None:
    """The unit of systemd whose daemon it is; None for one that `up` started by itself."""
    try:
        groups = Path(f"/proc/{pid_file.holder(instance.pid_file)}/cgroup").read_text()
    except OSError:
        return None
    return next((name for name in re.split(r"[/\s]", groups) if re.fullmatch(r"dnat(@.*)?\.service", name)), None)


def start(instance: Instance, path: Path | None) -> str:
    """Start the daemon in the background and wait for its word. Raises what stopped it."""
    fresh = not instance.journal.exists()
    try:
        instance.run.mkdir(parents=True, exist_ok=True)
        log = instance.log.open("a")
    except OSError as error:
        raise PlatformError(f"{instance.log} cannot be written: {error.strerror}") from None
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "dnat.daemon", "--ready-fd", str(write_end)]
    if path is not None:
        command += ["--config", str(path.absolute())]
    with log, os.fdopen(read_end) as pipe:
        daemon = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(write_end,),
            start_new_session=True,
            cwd="/",
        )
        os.close(write_end)
        try:
            if sys.stderr.isatty() and not select.select([pipe], [], [], QUIET_SECONDS)[0]:
                click.echo("starting: programs are being compiled, or the server does not answer yet", err=True)
            said = pipe.read()
        except KeyboardInterrupt:
            daemon.terminate()
            daemon.wait()
            raise
    if not said:
        daemon.wait()
        if fresh and daemon.returncode < 0:
            from dnat.teardown import tear_down

            tear_down(instance, keep_log=True)
        raise DnatError(_last_words(instance))
    word = json.loads(said)
    if word["kind"] is None:
        keep(instance, path)
        return str(word["message"])
    daemon.wait()
    kind = getattr(errors, word["kind"], DnatError)
    raise kind(word["message"])


def keep(instance: Instance, path: Path | None) -> None:
    """Remember what the daemon was configured with. Without it `reload` has nothing to go back to, and that is all."""
    kept = instance.configuration_in_use
    if path == kept:
        return
    with contextlib.suppress(OSError):
        instance.run.mkdir(parents=True, exist_ok=True)
        kept.unlink(missing_ok=True)
        text = path.read_bytes() if path else b""
        with os.fdopen(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)


def _last_words(instance: Instance) -> str:
    lines = instance.log.read_text(errors="replace").strip().splitlines()
    return f"the daemon ended before it was ready: {lines[-1] if lines else 'no word'} (log: {instance.log})"


def _stop(instance: Instance) -> bool:
    """End the daemon, kindly and then not; False when nothing was up."""
    was_up = instance.journal.exists() or pid_file.holder(instance.pid_file) is not None
    try:
        with Client(instance.socket, timeout=STOP_SECONDS) as client:
            client.call("stop", release=True)
        patience = STOP_SECONDS
    except NotRunningError:
        # There is none, or it is still starting, or it hangs.
        patience = 0.0
    wait_for_end(instance, patience)
    return was_up


def wait_for_end(instance: Instance, patience: float = STOP_SECONDS) -> None:
    """Give a daemon that was told to stop so many seconds, and then no more."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if (pid := _remaining(instance, patience)) is None:
            return
        os.kill(pid, number)
        patience = STOP_SECONDS
    _remaining(instance, patience)


def _remaining(instance: Instance, patience: float) -> int | None:
    """Wait so many seconds for the daemon to end; its process id if it has not."""
    deadline = time.monotonic() + patience
    while (pid := pid_file.holder(instance.pid_file)) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    return pid
