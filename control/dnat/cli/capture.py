"""``dnatctl capture``: what PAP, SIP and ICMP say on an interface."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from dnat.errors import UsageError


@click.command()
@click.option("-i", "--interface", help="Capture here until Ctrl-C.")
@click.option("-r", "--read", "source", type=click.Path(path_type=Path), help="Read this pcap file instead.")
@click.option("-w", "--write", "pcap", type=click.Path(path_type=Path), help="Write every packet to this pcap file.")
@click.option("--seconds", type=click.FloatRange(min=0.1), help="Stop after so long.")
@click.option("--count", type=click.IntRange(min=0), default=0, help="Stop after so many messages.")
def capture(interface: str | None, source: Path | None, pcap: Path | None, seconds: float | None, count: int) -> None:
    """Say one line per PAP, SIP and ICMP message.

    \b
    Examples:  sudo dnatctl capture -i eth0
               sudo dnatctl capture -i eth0 -w call.pcap --seconds 60
               dnatctl capture -r call.pcap
    """
    from dnat.capture import sniff

    if (interface is None) == (source is None):
        raise UsageError("say either where to capture (-i eth0) or what to read (-r call.pcap)")
    if source is not None:
        sniff.read(source, click.echo)
        return
    assert interface is not None
    # Whoever ends it, the last packets reach the file.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    click.echo(f"capturing on {interface}; Ctrl-C ends it", err=True)
    dropped = sniff.watch(interface, click.echo, pcap=pcap, seconds=seconds, count=count)
    if dropped:
        click.echo(f"the kernel had to drop {dropped} packets from {pcap}", err=True)
