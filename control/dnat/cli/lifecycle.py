"""``dnatctl up``, ``down`` and ``status``: the daemon's life."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click

from dnat import config as configuration
from dnat import errors
from dnat.client import Client
from dnat.errors import DnatError, NotRunningError, PlatformError
from dnat.instance import Instance

START_SECONDS = 30.0
STOP_SECONDS = 10.0


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="Configuration file.  [/etc/dnat/dnat.toml]")
@click.option("--foreground", is_flag=True, help="Stay in the foreground, for service managers.")
def up(path: Path | None, foreground: bool) -> None:
    """Take up this machine's roles: by default those of a host, whose server is the default gateway.

    Returns when the data plane carries traffic. Doing it twice is harmless.

    \b
    Example:  sudo dnatctl up
    """
    from dnat.system.netns import require_root

    require_root()
    instance = Instance.current()
    path = path or instance.configuration()
    config = configuration.load(path)
    if (summary := _running(instance)) is not None:
        click.echo(f"already up: {summary}")
        return
    if foreground:
        sys.exit(_stay(instance, config))
    click.echo(f"up: {_start(instance, path)}")


@click.command()
def down() -> None:
    """Give the ports back and restore addresses, routes, sysctls, filters and nftables as they were before ``up``.

    Works as well after the daemon was killed.
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
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def status(output: str) -> None:
    """Say whether dnat is up here, and with which roles. Exit code 5 when it is not."""
    instance = Instance.current()
    try:
        with Client(instance.socket) as client:
            answer = client.call("status")
    except NotRunningError:
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


def _running(instance: Instance) -> str | None:
    """What the running daemon says of itself; None when there is none."""
    try:
        with Client(instance.socket) as client:
            return "; ".join(client.call("status")["summary"])
    except NotRunningError:
        return None


def _start(instance: Instance, path: Path | None) -> str:
    """Start the daemon in the background and wait for its word. Raises what stopped it."""
    fresh = not instance.journal.exists()
    instance.run.mkdir(parents=True, exist_ok=True)
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "dnat.daemon", "--ready-fd", str(write_end)]
    if path is not None:
        command += ["--config", str(path.absolute())]
    with instance.log.open("a") as log, os.fdopen(read_end) as pipe:
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(write_end,),
            start_new_session=True,
            cwd="/",
        )
        os.close(write_end)
        said = pipe.read()
    word = json.loads(said) if said else {"kind": "DnatError", "message": _last_words(instance)}
    if word["kind"] is None:
        return str(word["message"])
    if fresh:
        from dnat.teardown import tear_down

        tear_down(instance, keep_log=True)
    kind = getattr(errors, word["kind"], DnatError)
    raise kind(word["message"])


def _stay(instance: Instance, config: configuration.Config) -> int:
    """Be the daemon until told to stop; a first start that fails leaves nothing behind."""
    from dnat.daemon.main import run

    fresh = not instance.journal.exists()
    code = run(config)
    if code != 0 and fresh:
        from dnat.teardown import tear_down

        tear_down(instance, keep_log=True)
    return code


def _last_words(instance: Instance) -> str:
    lines = instance.log.read_text(errors="replace").strip().splitlines()
    return f"the daemon ended before it was ready: {lines[-1] if lines else 'no word'} (log: {instance.log})"


def _stop(instance: Instance) -> bool:
    """End the daemon, kindly and then not; False when nothing was up."""
    try:
        with Client(instance.socket) as client:
            pid = int(client.call("stop", release=True)["pid"])
    except NotRunningError:
        return instance.journal.exists() or instance.run.exists()
    deadline = time.monotonic() + STOP_SECONDS
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    if Path(f"/proc/{pid}").exists():
        os.kill(pid, 9)
    return True
