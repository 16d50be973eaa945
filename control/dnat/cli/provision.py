"""``dnatctl provision``: a phone's whole configuration, for ports that it leases."""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from dnat.cli.console import output_option
from dnat.client import Client
from dnat.errors import PlatformError, UsageError
from dnat.instance import Instance
from dnat.types import PortRange

_NO_USER = re.compile(r"[\s/@:;<>]")


@click.command()
@click.argument("phone", type=click.Choice(["baresip", "linphone"]))
@click.option("--user", required=True, help="Name of the account.")
@click.option("--password", envvar="DNAT_SIP_PASSWORD", help="Asked for where not given; also DNAT_SIP_PASSWORD.")
@click.option("--server", metavar="HOST[:PORT]", help="SIP server.  [the external address]")
@click.option("--domain", help="Part of the SIP address after the @.  [the server]")
@click.option("--transport", type=click.Choice(["udp", "tcp", "tls"]), default="udp", show_default=True)
@click.option("--encryption", type=click.Choice(["none", "sdes", "dtls"]), default="none", show_default=True)
@click.option("--calls", type=click.IntRange(1, 100), default=7, show_default=True, help="Calls at the same time.")
@click.option("--lifetime", type=click.IntRange(0, 86400), default=0, help="Of the lease, seconds; 0: the server's.")
@click.option("--ca", type=click.Path(path_type=Path, exists=True), help="Certificate to verify the server by.")
@click.option("--directory", type=click.Path(path_type=Path), help="Where to write.  [~/.dnat/PHONE-USER]")
@click.option("--audio-source", default="alsa,default", show_default=True, help="baresip's module,device.")
@click.option("--audio-player", default="alsa,default", show_default=True, help="baresip's module,device.")
@click.option("--http", "http_port", type=click.IntRange(1, 65535), help="Then serve the files at this port.")
@output_option
def provision(
    phone: str,
    user: str,
    password: str | None,
    server: str | None,
    domain: str | None,
    transport: str,
    encryption: str,
    calls: int,
    lifetime: int,
    ca: Path | None,
    directory: Path | None,
    audio_source: str,
    audio_player: str,
    http_port: int | None,
    output: str,
) -> None:
    """Lease ports and write a phone's configuration for them.

    Doing it again keeps the block.

    \b
    Example:  sudo dnatctl provision baresip --user alice --encryption sdes
    """
    from dnat.sip import certificate
    from dnat.sip import provision as phones

    if _NO_USER.search(user) or not user:
        raise UsageError(f'"{user}" is no user of a SIP server: a name without spaces and without any of / @ : ; < >')
    if server is not None:
        _server(server, transport)
    if password is None:
        if not sys.stdin.isatty():
            raise UsageError("there is nobody to ask for the password: give it in DNAT_SIP_PASSWORD")
        password = click.prompt("Password", hide_input=True, err=True)
    place = (directory or Path.home() / ".dnat" / f"{phone}-{user}").absolute()
    try:
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o700)
    except OSError as error:
        raise PlatformError(f"{place} cannot be made: {error.strerror}; name another with --directory") from None
    lease = _block(place / "lease.json", phones.SIP_PORTS + 2 * calls, lifetime)
    host, port = _server(server or lease["address"], transport)
    account = phones.PhoneAccount(
        user=user,
        domain=domain or host,
        password=password,
        server=host,
        server_port=port,
        transport=transport,
        encryption=encryption,
        address=_address(lease),
        ports=PortRange(lease["first"], lease["last"]),
        ca=ca.absolute() if ca else None,
        source=audio_source,
        player=audio_player,
    )
    if phone == "baresip":
        pair = certificate.ensure(place / "tls", lease["address"], account.address)
        both = place / "tls/both.pem"
        _write(both, "".join(part.read_text() for part in pair))
        written = phones.baresip(account, place, both)
    else:
        written = phones.linphone(account, place)
    for name, text in written.files.items():
        _write(place / name, text)
    _say(output, place, account, written)
    if http_port is not None:
        _serve(place, list(written.files), http_port)


def _say(output: str, place: Path, account: Any, written: Any) -> None:
    if output == "json":
        told = {
            "directory": str(place),
            "identity": account.identity,
            "address": str(account.address),
            "first": account.ports.first,
            "last": account.ports.last,
            "rtp": str(account.rtp),
            "start": written.start,
        }
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(
        f"{account.identity} at {account.address}:{account.ports} (SIP {account.ports.first}, RTP {account.rtp})"
    )
    click.echo(f"written to {place}; start the phone with: {written.start}")


def _block(memory: Path, count: int, lifetime: int) -> dict[str, Any]:
    """The lease that this phone has, or a new one."""
    with Client(Instance.current().socket) as client:
        try:
            known = json.loads(memory.read_text())
            for lease in client.call("show")["leases"]:
                if lease["id"] == known["id"] and lease["last"] - lease["first"] + 1 == count:
                    return dict(lease)
            client.call("release", ids=[known["id"]], ports=[])
        except (OSError, ValueError, KeyError, UsageError):
            pass
        lease = client.call("request", count=count, parity="even", exact=True, lifetime=lifetime)["lease"]
    _write(memory, json.dumps(lease))
    return dict(lease)


def _address(lease: dict[str, Any]) -> Any:
    from ipaddress import IPv4Address

    return IPv4Address(lease["address"])


def _server(text: str, transport: str) -> tuple[str, int]:
    host, colon, port = text.partition(":")
    if not colon:
        return host, 5061 if transport == "tls" else 5060
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f'"{text}" is no SIP server; write it as 198.51.100.1 or sip.example.org:5060')
    return host, int(port)


def _write(path: Path, text: str) -> None:
    """Passwords are in it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise PlatformError(f"{path} cannot be written: {error.strerror}") from None


def _serve(place: Path, names: list[str], port: int) -> None:
    """Hand the phone's files to devices on the LAN until Ctrl-C: these alone, and to read."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from socketserver import TCPServer

    from dnat.system import links

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            # A device that DHCP option 66 sends here asks by its link address.
            wanted = place / "linphone.xml" if name == f"{mac}.xml" else place / name
            if wanted.name not in names or (name != f"{mac}.xml" and name not in names):
                self.send_error(404)
                return
            body = wanted.read_bytes()
            self.send_response(200)
            kind = "application/xml" if wanted.suffix == ".xml" else "text/plain"
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    uplink = links.default_gateway()
    mac = (links.interface(uplink.interface).mac or "").replace(":", "").lower()

    class Server(ThreadingHTTPServer):
        def server_bind(self) -> None:
            # HTTPServer's own would look up its name, and wait for a DNS that a phone's LAN may not have.
            TCPServer.server_bind(self)
            self.server_name, self.server_port = str(uplink.address), port

    try:
        server = partial(Server, (str(uplink.address), port))(Files)
    except OSError as error:
        raise PlatformError(f"port {port} of {uplink.address} cannot be served: {error.strerror}") from None
    click.echo(f"serving http://{uplink.address}:{port}/ until Ctrl-C: {', '.join([*names, f'{mac}.xml'])}", err=True)
    with server:
        server.serve_forever()
