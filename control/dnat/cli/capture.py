"""``dnatctl capture``: what PAP, SIP and ICMP say on an interface."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from dnat.cli import words
from dnat.cli.completion import interfaces
from dnat.errors import PlatformError, UsageError


@click.command()
@click.option("-i", "--interface", shell_complete=interfaces, help="Capture here until Ctrl-C.")
@click.option("-r", "--read", "source", type=click.Path(path_type=Path), help="Read this pcap file instead.")
@click.option("-w", "--write", "pcap", type=click.Path(path_type=Path), help="Write every packet to this pcap file.")
@click.option("--seconds", type=words.Seconds(min=0.1), help="Stop after so long.")
@click.option("--count", type=click.IntRange(min=0), default=0, help="Stop after so many messages.")
@click.option("--call", metavar="CALL-ID", help="Draw this call of the file read (its beginning will do, or all).")
@click.option("--ladder", type=click.Path(path_type=Path), default=Path("call.svg"), show_default=True)
@click.option("--shared", multiple=True, metavar="ADDRESS", help="External address.  [that of this host]")
def capture(
    interface: str | None,
    source: Path | None,
    pcap: Path | None,
    seconds: float | None,
    count: int,
    call: str | None,
    ladder: Path,
    shared: tuple[str, ...],
) -> None:
    """Say one line per PAP, SIP and ICMP message.

    \b
    Examples:  sudo dnatctl capture -i eth0
               sudo dnatctl capture -i eth0 -w call.pcap --seconds 60
               dnatctl capture -r call.pcap
               dnatctl capture -r call.pcap --call all --ladder call.svg
    """
    from dnat.capture import sniff

    if (interface is None) == (source is None):
        raise UsageError("say either where to capture (-i eth0) or what to read (-r call.pcap)")
    if source is not None and (pcap or seconds or count):
        raise UsageError("--write, --seconds and --count are for an interface: dnatctl capture -i eth0")
    if call is not None:
        if source is None:
            raise UsageError("a call is drawn from a file: dnatctl capture -r call.pcap --call all")
        _draw(source, call, ladder, shared)
        return
    if source is not None:
        sniff.read(source, click.echo)
        return
    assert interface is not None
    # Whoever ends it, the last packets reach the file.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def ready() -> None:
        click.echo(f"capturing on {interface}; Ctrl-C ends it", err=True)

    dropped = sniff.watch(interface, click.echo, pcap=pcap, seconds=seconds, count=count, ready=ready)
    if dropped:
        click.echo(f"the kernel had to drop {dropped} packets from {pcap}", err=True)


def _draw(source: Path, wanted: str, ladder: Path, shared: tuple[str, ...]) -> None:
    """Write a ladder picture, and say a line for each stream."""
    from ipaddress import IPv4Address

    from dnat.capture import call_ladder
    from dnat.capture.calls import read_traffic

    try:
        addresses = [IPv4Address(text) for text in shared or _own_addresses()]
    except ValueError as error:
        raise UsageError(f"--shared: {error}") from None
    calls = call_ladder.choose(read_traffic(source), wanted)
    try:
        ladder.write_text(call_ladder.draw(calls, addresses), encoding="utf-8")
    except OSError as error:
        raise PlatformError(f"{ladder} cannot be written: {error.strerror}") from None
    for one in calls:
        click.echo(f"{one.call_id}: {call_ladder.title(one)}, {len(one.messages)} messages")
        for stream in one.streams:
            kind = "SRTP" if stream.secure_profile else "RTP"
            click.echo(
                f"  {kind} {stream.source} -> {stream.destination} {stream.codec}: {stream.packets} packets,"
                f" {stream.lost} lost, jitter {stream.jitter * 1000:.1f} ms"
            )
    click.echo(f"drawn in {ladder}")


def _own_addresses() -> list[str]:
    from dnat.client import Client
    from dnat.errors import NotRunningError
    from dnat.instance import Instance

    try:
        with Client(Instance.current().socket) as client:
            return list(client.call("show")["external_addresses"])
    except NotRunningError:
        raise UsageError("which address is shared? dnat is not up here, so say it: --shared 198.51.100.1") from None
