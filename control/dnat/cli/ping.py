"""``dnatctl ping``: tests a combination address from outside in."""

from __future__ import annotations

import json
import sys
from typing import cast

import click

from dnat import probe
from dnat.cli import words
from dnat.cli.console import output_option
from dnat.errors import PlatformError, UsageError

_SAYING = {
    "answered": "answered",
    "open": "the connection was accepted",
    "refused": "the host was reached, but no program listens there",
    "unreachable": "not reachable",
    "silence": "no answer: nobody owns the port, a firewall drops it, or the program there does not talk to strangers",
}


@click.command()
@click.argument("target", metavar="ADDRESS:PORT", required=False)
@click.option("--protocol", type=click.Choice(["udp", "tcp", "sip"]), default="udp", show_default=True)
@click.option("--count", type=click.IntRange(1, 1000), default=3, show_default=True)
@click.option("--timeout", type=words.Seconds(0.05, 60), default=1.0, show_default=True, help="Seconds to wait.")
@click.option("--listen", metavar="PORT", type=click.IntRange(1, 65535), help="Answer instead, on this leased port.")
@click.option("--seconds", type=words.Seconds(0.1), help="With --listen: stop after so long.")
@output_option
def ping(
    target: str | None,
    protocol: str,
    count: int,
    timeout: float,
    listen: int | None,
    seconds: float | None,
    output: str,
) -> None:
    """Test from outside whether a port leads to its host.

    Run it on a machine outside. Something has to answer on the host: a phone (--protocol sip), a TCP server (--protocol
    tcp), or this command with --listen. Exit code 0 when the host was reached, 1 when not.

    \b
    Examples:  sudo dnatctl request --port 7000   # on the host
               dnatctl ping --listen 7000         # on the host
               dnatctl ping 198.51.100.1:7000     # outside
               dnatctl ping 198.51.100.1:5060 --protocol sip
    """
    if (target is None) == (listen is None):
        raise UsageError("say either what to ask (198.51.100.1:5060) or which port to answer on (--listen 5060)")
    if listen is not None:
        _listen(listen, seconds)
        return
    assert target is not None
    address, port = _parse(target)
    kind = cast(probe.Kind, protocol)
    echoes = []
    for number in range(1, count + 1):
        echo = probe.ask(address, port, kind, timeout)
        echoes.append(echo)
        if output == "table":
            seen = f", saw us as {echo.seen_as}" if echo.seen_as else ""
            text = f" ({echo.text})" if echo.text else ""
            click.echo(f"{number}: {_SAYING[echo.outcome]}{text}{seen}, {echo.milliseconds:.1f} ms")
    reached = any(echo.outcome in probe.REACHED for echo in echoes)
    if output == "json":
        rows = [
            {"outcome": e.outcome, "milliseconds": round(e.milliseconds, 2), "seen_as": e.seen_as, "text": e.text}
            for e in echoes
        ]
        click.echo(json.dumps({"reached": reached, "probes": rows}, indent=2))
    sys.exit(0 if reached else 1)


def _listen(port: int, seconds: float | None) -> None:
    click.echo(f"answering on port {port}, UDP and TCP; Ctrl-C ends it", err=True)
    try:
        probe.answer("0.0.0.0", port, lambda sender: click.echo(f"answered {sender}"), seconds)
    except OSError as error:
        raise PlatformError(f"port {port} cannot be opened ({error.strerror}): is another program using it?") from None


def _parse(text: str) -> tuple[str, int]:
    from ipaddress import IPv4Address

    address, _, port = text.rpartition(":")
    try:
        if not 1 <= int(port) <= 65535:
            raise ValueError
        return str(IPv4Address(address)), int(port)
    except ValueError:
        raise UsageError(f'"{text}" is not an address and port, as 198.51.100.1:5060') from None
