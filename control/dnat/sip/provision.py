"""Configuration files of phones, for the ports that their host has leased.

A phone that knows its combination network address needs no STUN, no relay and no gateway: it writes that address into
SIP and SDP, and it is right.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from dnat.errors import UsageError
from dnat.types import PortRange

SIP_PORTS = 2
"""The first port of a block is for SIP over UDP and TCP, the next one for SIP over TLS."""
BARESIP_MODULES = Path("/usr/lib/baresip/modules")
SILENCE_SECONDS = 30
"""Without a packet of the other party's, a call is over; on hold it is not."""
SIP_DSCP, RTP_DSCP = 40, 46
"""CS5 and EF (RFC 4594, sections 4.1 and 4.2)."""

_ENCRYPTION_MODULES = {"none": (), "sdes": ("srtp",), "dtls": ("srtp", "dtls_srtp")}


@dataclass(frozen=True, slots=True)
class PhoneAccount:
    """What a phone needs to know of its account, its ports and its server."""

    user: str
    domain: str
    password: str
    server: str
    """Address or name of the SIP server."""
    server_port: int
    transport: str
    """``udp``, ``tcp`` or ``tls``."""
    encryption: str
    """Of media: ``none``, ``sdes`` (RFC 4568) or ``dtls`` (RFC 5764)."""
    address: IPv4Address
    """External address."""
    ports: PortRange
    """The leased block; begins even and ends odd."""
    ca: Path | None = None
    """Certificate that the server's must be signed by."""
    source: str = "alsa,default"
    """baresip's ``module,device`` that sound comes from."""
    player: str = "alsa,default"

    def __post_init__(self) -> None:
        if self.ports.first % 2 or not self.ports.last % 2 or len(self.ports) < SIP_PORTS + 2:
            raise UsageError(f"a phone's ports begin even, end odd and are at least four: {self.ports}")
        for text in (self.user, self.domain, self.password, self.server):
            if not text or re.search(r"[\s\"\\<>\x00-\x1f\x7f]", text):
                raise UsageError(f"a phone's configuration cannot carry {text!r}: no blanks, quotes, <, > and \\")

    @property
    def rtp(self) -> PortRange:
        return PortRange(self.ports.first + SIP_PORTS, self.ports.last)

    @property
    def identity(self) -> str:
        return f"sip:{self.user}@{self.domain}"

    @property
    def usual_server(self) -> bool:
        """Whether the domain alone leads to the server."""
        return self.domain == self.server and self.server_port == (5061 if self.transport == "tls" else 5060)


@dataclass(frozen=True, slots=True)
class Provisioned:
    """What was written."""

    files: dict[str, str]
    """Text by name, relative to the phone's directory."""
    start: str
    """The command that starts the phone."""


def baresip(account: PhoneAccount, directory: Path, certificate: Path | None) -> Provisioned:
    """baresip 1.0 and later. ``certificate`` (with its key) lets others call over TLS."""
    config = f"""\
poll_method epoll
sip_listen {account.address}:{account.ports.first}
# The external address is on lo.
net_interface lo
rtp_ports {account.rtp.first}-{account.rtp.last}
rtp_tos {RTP_DSCP << 2}
rtp_stats yes
call_max_calls {len(account.rtp) // 2}
call_local_timeout 120
# Whose ports are taken back hears nothing any more, and hangs up.
rtp_timeout {SILENCE_SECONDS}
audio_source {account.source}
audio_player {account.player}
audio_alert {account.player}
ausrc_srate 48000
auplay_srate 48000
ausrc_channels {2 if account.source.startswith("ausine") else 1}
auplay_channels {2 if account.source.startswith("ausine") else 1}
module_path {BARESIP_MODULES}
module g711.so
module {account.source.partition(",")[0]}.so
"""
    player = account.player.partition(",")[0]
    if player != account.source.partition(",")[0]:
        config += f"module {player}.so\n"
    config += {"none": "", "sdes": "module srtp.so\n", "dtls": "module srtp.so\nmodule dtls_srtp.so\n"}[
        account.encryption
    ]
    config += "module_tmp uuid.so\nmodule_tmp account.so\nmodule_app menu.so\n"
    if account.source.startswith("alsa"):
        config += "module stdio.so\n"
    if certificate is not None:
        config += f"sip_certificate {certificate}\n"
    if account.ca is not None:
        config += f"sip_cafile {account.ca}\n"
    parameters = [f'auth_user={account.user};auth_pass="{account.password}"', "regint=600"]
    if not account.usual_server:
        parameters.append(f'outbound="sip:{account.server}:{account.server_port};transport={account.transport}"')
    if account.encryption != "none":
        parameters.append({"sdes": "mediaenc=srtp-mand", "dtls": "mediaenc=dtls_srtp"}[account.encryption])
    line = f"<{account.identity};transport={account.transport}>;{';'.join(parameters)}\n"
    return Provisioned(
        {"config": config, "accounts": line, "contacts": ""}, f"baresip -f {shlex.quote(str(directory))}"
    )


def linphone(account: PhoneAccount, directory: Path) -> Provisioned:
    """linphone 5; ``linphone.xml`` is the same for remote provisioning."""
    sections = linphone_sections(account)
    rc = "\n".join(
        f"[{section}]\n" + "".join(f"{name}={value}\n" for name, value in entries.items())
        for section, entries in sections.items()
    )
    xml = ['<?xml version="1.0" encoding="UTF-8"?>']
    xml.append('<config xmlns="http://www.linphone.org/xsds/lpconfig.xsd">')
    for section, entries in sections.items():
        xml.append(f"  <section name={quoteattr(section)}>")
        xml += [
            f'    <entry name={quoteattr(name)} overwrite="true">{escape(value)}</entry>'
            for name, value in entries.items()
        ]
        xml.append("  </section>")
    xml.append("</config>\n")
    start = f"linphonec -c {shlex.quote(str(directory / 'linphonerc'))}"
    return Provisioned({"linphonerc": rc, "linphone.xml": "\n".join(xml)}, start)


def linphone_sections(account: PhoneAccount) -> dict[str, dict[str, str]]:
    """linphone's settings by section. It finds the external address by itself: by the route to its server."""
    listening = {"sip_port": "0", "sip_tcp_port": "0", "sip_tls_port": "0"}
    if account.transport == "tls":
        listening["sip_tls_port"] = str(account.ports.first + 1)
    else:
        listening[{"udp": "sip_port", "tcp": "sip_tcp_port"}[account.transport]] = str(account.ports.first)
    sections = {
        "sip": {
            **listening,
            "default_proxy": "0",
            "use_ipv6": "0",
            "register_only_when_network_is_up": "0",
            "verify_server_certs": "1" if account.ca else "0",
            "verify_server_cn": "1" if account.ca else "0",
            "media_encryption": {"none": "none", "sdes": "srtp", "dtls": "dtls"}[account.encryption],
            "media_encryption_mandatory": "0" if account.encryption == "none" else "1",
            "dscp": f"{SIP_DSCP:#x}",
        },
        "rtp": {
            "audio_rtp_port": f"{account.rtp.first}-{account.rtp.last}",
            "audio_dscp": f"{RTP_DSCP:#x}",
            "nortp_timeout": str(SILENCE_SECONDS),
        },
        "net": {"firewall_policy": "0", "stun_server": ""},
        "video": {"enabled": "0", "capture": "0", "display": "0"},
        "proxy_0": {
            "reg_proxy": f"<sip:{account.server}:{account.server_port};transport={account.transport}>",
            "reg_identity": account.identity,
            "reg_expires": "600",
            "reg_sendregister": "1",
            "publish": "0",
        },
        "auth_info_0": {"username": account.user, "passwd": account.password, "domain": account.domain},
    }
    if account.ca is not None:
        sections["sip"]["root_ca"] = str(account.ca)
    return sections
