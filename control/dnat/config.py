"""Configuration: a TOML file, checked whole before anything is touched.

Every message names the file, the key and what is allowed there. No file at all is a valid configuration: a host that
finds its server at the default gateway.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from dnat.errors import ConfigError
from dnat.types import PortRange

ROLES = ("host", "server", "router", "sip")
WAN_ADDRESS = "wan"
"""In ``server.external_addresses``: whatever address the WAN has."""
Role = Literal["host", "server", "router", "sip"]
XdpMode = Literal["auto", "on", "off"]

_Address = Annotated[str, Meta(description="an IPv4 address in quotes")]
_Interface = Annotated[str, Meta(description="an interface's name in quotes", min_length=1, max_length=15)]
_PortCount = Annotated[int, Meta(description="a whole number from 1 to 4096", ge=1, le=4096)]
_PortRanges = Annotated[list[str], Meta(description='a list of port ranges, as ["10000-59999"]')]


_ServerMode = Annotated[
    Literal["open", "tofu", "strict"], Meta(description='"open", "tofu" or "strict" (docs/pap.md, 9.1)')
]
_HostMode = Annotated[
    Literal["auto", "required", "off"], Meta(description='"auto", "required" or "off" (docs/pap.md, 9.1)')
]


class TimerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[host.timers]`` table: seconds without an outbound packet until a translation may end."""

    udp: Annotated[int, Meta(description="seconds, 120 to 86400 (RFC 4787, REQ-5)", ge=120, le=86400)] = 300
    tcp_established: Annotated[
        int, Meta(description="seconds, 7440 to 864000 (RFC 5382, REQ-5)", ge=7440, le=864000)
    ] = 7440
    tcp_transitory: Annotated[int, Meta(description="seconds, 240 to 86400 (RFC 5382, REQ-5)", ge=240, le=86400)] = 240
    """Before a connection is established, and after it was closed or reset."""
    icmp: Annotated[int, Meta(description="seconds, 60 to 86400 (RFC 5508, REQ-2)", ge=60, le=86400)] = 60


class HostSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[host]`` table."""

    interface: _Interface | None = None
    """LAN interface; by default the one of the default route."""
    server: Annotated[
        str | list[str] | None,
        Meta(description='an IPv4 address in quotes, or a list of them, as ["10.0.0.2", "10.0.0.3"]'),
    ] = None
    """PAP server, or several that share a store: the next one is asked when one does not answer. By default the one
    that DHCP option 227 names, else the default gateway.
    """
    authentication: _HostMode = "auto"
    """Use a key if there is one and agree on one when the server wants it; do nothing without one; use none."""
    ephemeral_ports: _PortCount = 64
    """Ports for the host's own connections, to begin with."""
    ephemeral_ports_max: _PortCount = 1024
    """So many there may be when more than three quarters are in use at once."""
    translated_ports: _PortCount = 32
    """Ports to which the kernel translates what programs bind elsewhere."""
    translated_ports_max: _PortCount = 1024
    """So far the translated ports may grow when they run low."""
    give_back_after: Annotated[int, Meta(description="seconds, 1 to 86400", ge=1, le=86400)] = 300
    """How long surplus ports, translated or ephemeral, are idle before they are given back."""
    filtering: Annotated[
        Literal["endpoint-independent", "address-dependent"],
        Meta(description='"endpoint-independent" or "address-dependent"'),
    ] = "endpoint-independent"
    """Who may send to a translated port: anybody, or whom it has sent to (RFC 4787, section 5)."""
    inbound_refresh: Annotated[bool, Meta(description="true or false")] = False
    """Whether inbound packets, too, keep a translation alive (RFC 4787, REQ-6)."""
    exhausted: Annotated[Literal["icmp", "drop"], Meta(description='"icmp" or "drop"')] = "icmp"
    """Whether a program whose packet cannot be sent for want of a port is told so."""
    translate_containers: Annotated[bool, Meta(description="true or false")] = True
    """Whether containers and virtual machines speak from ports of the host, too, where somebody (Docker, Podman,
    libvirt) masquerades for them.
    """
    timers: TimerSettings = TimerSettings()

    @property
    def servers(self) -> tuple[str, ...]:
        """Those named, in their order."""
        return (self.server,) if isinstance(self.server, str) else tuple(self.server or ())


class ReservedPorts(Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[[server.reserved]]`` table: ports that only some hosts may lease."""

    ports: Annotated[str, Meta(description='a port range, as "5060-5061"')]
    hosts: Annotated[
        list[str], Meta(description="a list of LAN addresses, names of keys and host identities", min_length=1)
    ]
    permanent: Annotated[bool, Meta(description="true or false")] = False
    """Leases of these ports do not expire."""


class ServerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[server]`` table."""

    external_addresses: Annotated[
        list[str], Meta(description='a list of IPv4 addresses, as ["198.51.100.1"], or ["wan"]')
    ] = []
    listen: _Address | None = None
    """LAN address to serve; by default that of ``router.lan``, or of the interface of the default route."""
    networks: Annotated[list[str], Meta(description='a list of networks, as ["10.66.0.0/24"]')] = []
    """Whose datagrams are served; by default the network of ``listen``."""
    ports: _PortRanges = msgspec.field(default_factory=lambda: ["10000-59999"])
    """Ports that are given out by number of ports."""
    specific_ports: _PortRanges = msgspec.field(default_factory=lambda: ["1024-59999"])
    """Ports that hosts may ask for by name."""
    excluded_ports: Annotated[list[str], Meta(description='a list of port ranges, as ["20000-20099"]')] = []
    """Ports that are never given out."""
    reserved: Annotated[list[ReservedPorts], Meta(description="tables [[server.reserved]]")] = []
    lifetime: Annotated[int, Meta(description="seconds, 60 to 86400", ge=60, le=86400)] = 3600
    authentication: _ServerMode = "open"
    """What becomes of hosts without a key: served; asked to agree on one; refused."""
    ports_per_host: Annotated[int, Meta(description="a whole number from 1 to 65535", ge=1, le=65535)] = 2048
    leases_per_host: Annotated[int, Meta(description="a whole number from 1 to 32", ge=1, le=32)] = 32
    requests_per_second: Annotated[int, Meta(description="a whole number from 1 to 10000", ge=1, le=10000)] = 20
    """Questions of one host; five times as many at once."""
    new_leases_per_second: Annotated[int, Meta(description="a whole number from 1 to 100000", ge=1, le=100000)] = 2000
    """Of all hosts together; twice as many at once. Renewals do not count."""
    retention_days: Annotated[int, Meta(description="days, 0 to 3660", ge=0, le=3660)] = 180
    """How long the log of who held which ports keeps what has ended."""
    hold_down: Annotated[int, Meta(description="seconds, 0 to 86400", ge=0, le=86400)] = 120
    """How long a freed port is kept from other hosts (RFC 6888, REQ-8)."""


class RouterSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[router]`` table."""

    lan: _Interface | None = None
    wan: _Interface | None = None
    own_ports: Annotated[str, Meta(description='a port range, as "60000-65535"')] = "60000-65535"
    """Ports of an external address that is the router's own, kept for the router and for LAN devices without PAP."""
    xdp: Annotated[XdpMode, Meta(description='"auto", "on" or "off"')] = "auto"
    """Send plain packets on at XDP: ``auto`` where both drivers can and nothing gets slower, ``on`` also on veth."""


class SipSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[sip]`` table."""

    mode: Annotated[
        Literal["proxy", "redirect", "registrar"], Meta(description='"proxy", "redirect" or "registrar"')
    ] = "proxy"
    """Pass requests on to the phones; tell the asker where they are (302); or tell that a redirect server alone."""
    registrar: Annotated[str, Meta(description='an address and a port, as "198.51.100.1:5070"')] | None = None
    """The registrar on another machine that a redirect server asks; by default it is one itself."""
    port: Annotated[int, Meta(description="a port, 1024 to 65535", ge=1024, le=65535)] = 5060
    """UDP and TCP; leased from the port server."""
    tls_port: Annotated[int, Meta(description="a port, or 0 for no TLS", ge=0, le=65535)] = 5061
    domain: Annotated[str, Meta(description='a domain name, as "example.org"', min_length=1)] | None = None
    """What stands after the @ in the users' SIP addresses; by default the external address."""
    users: Annotated[str, Meta(description="a path in quotes", pattern="^/")] | None = None
    """SQLite file with the users; by default in ``/var/lib/dnat``."""
    certificate: Annotated[str, Meta(description="a path in quotes", pattern="^/")] | None = None
    """PEM file, readable by the user kamailio; made by dnat where none is given."""
    key: Annotated[str, Meta(description="a path in quotes", pattern="^/")] | None = None
    """Of ``certificate``."""
    block_rate: Annotated[int, Meta(description="a whole number from 1", ge=1)] = 50
    """Requests a second that 16 neighbouring ports of one address may send."""
    address_rate: Annotated[int, Meta(description="a whole number from 1", ge=1)] = 500
    """Requests a second that one address outside of the site may send."""


class StoreSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[store]`` table: where servers keep leases and keys, and routers learn of owners."""

    kind: Annotated[Literal["sqlite", "etcd"], Meta(description='"sqlite" or "etcd"')] = "sqlite"
    """A file of this machine, or a cluster that several machines share."""
    endpoints: Annotated[list[str], Meta(description='a list of members, as ["10.0.0.7:2379"]')] = []
    """Of the etcd cluster."""
    prefix: Annotated[str, Meta(description='a key prefix, as "/dnat/"', pattern="^[!-~]*/$")] = "/dnat/"
    """What the keys of this LAN begin with: LANs that share a cluster need one each."""
    ca: Annotated[str, Meta(description="a path in quotes", pattern="^/")] | None = None
    """PEM file of who signed the members' certificates; without it the connection is in the clear."""
    certificate: Annotated[str, Meta(description="a path in quotes", pattern="^/")] | None = None
    """PEM file that shows etcd who this machine is."""
    key: Annotated[str, Meta(description="a path in quotes", pattern="^/")] | None = None
    """Of ``certificate``."""


class MetricsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[metrics]`` table."""

    listen: Annotated[str, Meta(description='an address and a port, as "127.0.0.1:9437"')] | None = None
    """Where Prometheus may ask; by default nowhere."""

    @property
    def endpoint(self) -> tuple[str, int] | None:
        """The address and port of ``listen``. Raises ValueError."""
        if self.listen is None:
            return None
        address, _, port = self.listen.rpartition(":")
        if not 1 <= int(port) <= 65535:
            raise ValueError(port)
        return str(IPv4Address(address)), int(port)


class ApiSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[api]`` table: what programs of users other than root may have (docs/api.md)."""

    group: Annotated[str, Meta(description='the name of a group, or "*" for everybody', min_length=1)] = "dnat"
    """Whose members may lease ports."""
    leases_per_user: Annotated[int, Meta(description="a whole number from 0 to 20", ge=0, le=20)] = 8
    ports_per_user: Annotated[int, Meta(description="a whole number from 0 to 4096", ge=0, le=4096)] = 256


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    roles: Annotated[list[Role], Meta(description=f"a list of {', '.join(ROLES)}")] = msgspec.field(
        default_factory=lambda: list[Role](("host",))
    )
    host: HostSettings = HostSettings()
    server: ServerSettings = ServerSettings()
    router: RouterSettings = RouterSettings()
    sip: SipSettings = SipSettings()
    store: StoreSettings = StoreSettings()
    metrics: MetricsSettings = MetricsSettings()
    api: ApiSettings = ApiSettings()


def load(path: Path | None) -> Config:
    """Read and check a configuration; ``None`` or a missing default file gives the defaults of a host.

    Raises ConfigError.
    """
    if path is None:
        return Config()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no configuration: it is not text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return parse(raw, str(path))


def parse(raw: dict[str, Any], source: str) -> Config:
    """Check what a file said; ``source`` is its name in messages. Raises ConfigError."""
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(str(error), raw)}") from None
    _check_values(config, source)
    return config


def port_ranges(texts: list[str], source: str, key: str) -> tuple[PortRange, ...]:
    """Parse port ranges of a checked key. Raises ConfigError."""
    ranges = []
    for text in texts:
        try:
            ranges.append(PortRange.parse(text))
        except ValueError:
            raise ConfigError(
                f'{source}: {key}: "{text}" is not a port range; write it as "10000-59999" or "5060", within 1 to 65535'
            ) from None
    return tuple(ranges)


def _check_values(config: Config, source: str) -> None:
    """What types cannot say: addresses, ranges, and keys that a role needs."""
    if not config.roles:
        raise ConfigError(f"{source}: roles: must name at least one of {', '.join(ROLES)}")
    for address in config.host.servers:
        _check_address(address, source, "host.server")
    _check_address(config.server.listen, source, "server.listen")
    for address in config.server.external_addresses:
        if address != WAN_ADDRESS:
            _check_address(address, source, "server.external_addresses")
        elif "router" not in config.roles:
            raise ConfigError(f'{source}: server.external_addresses: "wan" needs the role "router" on the same machine')
    for network in config.server.networks:
        try:
            IPv4Network(network)
        except ValueError:
            raise ConfigError(
                f'{source}: server.networks: "{network}" is not an IPv4 network; write it as "10.66.0.0/24"'
            ) from None
    try:
        _ = config.metrics.endpoint
    except ValueError:
        raise ConfigError(
            f'{source}: metrics.listen: "{config.metrics.listen}" is no address and port; write "127.0.0.1:9437"'
        ) from None
    port_ranges(config.server.ports, source, "server.ports")
    port_ranges(config.server.specific_ports, source, "server.specific_ports")
    port_ranges(config.server.excluded_ports, source, "server.excluded_ports")
    port_ranges([each.ports for each in config.server.reserved], source, "server.reserved.ports")
    port_ranges([config.router.own_ports], source, "router.own_ports")
    if "server" in config.roles and not config.server.external_addresses:
        raise ConfigError(
            f'{source}: server.external_addresses: the role "server" needs at least one IPv4 address here'
        )
    if "router" in config.roles:
        for key, value in (("lan", config.router.lan), ("wan", config.router.wan)):
            if value is None:
                raise ConfigError(f'{source}: router.{key}: the role "router" needs an interface\'s name here')
        if "server" not in config.roles and config.store.kind == "sqlite":
            raise ConfigError(
                f'{source}: roles: "router" needs "server" beside it, with which it shares the lease store; if the'
                ' server is another machine, both need the same [store] with kind = "etcd"'
            )
    _check_store(config.store, source)
    _check_sip(config, source)


def _check_store(store: StoreSettings, source: str) -> None:
    if store.kind == "etcd" and not store.endpoints:
        raise ConfigError(f'{source}: store.endpoints: "etcd" needs its members here, as ["10.0.0.7:2379"]')
    for endpoint in store.endpoints:
        host, _, port = endpoint.rpartition(":")
        if not (re.fullmatch(r"[A-Za-z0-9.-]+", host) and port.isdecimal() and 1 <= int(port) <= 65535):
            raise ConfigError(f'{source}: store.endpoints: "{endpoint}" is no member; write it as "10.0.0.7:2379"')
    if (store.certificate is None) != (store.key is None):
        raise ConfigError(f"{source}: store.key: certificate and key are given together or not at all")
    if store.certificate is not None and store.ca is None:
        raise ConfigError(f"{source}: store.ca: a certificate is shown over TLS only; name the members' CA, too")


def _check_sip(config: Config, source: str) -> None:
    sip = config.sip
    if "sip" in config.roles and "host" not in config.roles:
        raise ConfigError(f'{source}: roles: "sip" needs "host" beside it, which leases its ports')
    if sip.tls_port and (sip.tls_port < 1024 or sip.tls_port == sip.port):
        raise ConfigError(
            f"{source}: sip.tls_port: {sip.tls_port} is not allowed; write a port above 1023, not sip.port"
        )
    if (sip.certificate is None) != (sip.key is None):
        raise ConfigError(f"{source}: sip.key: certificate and key are given together or not at all")
    if sip.registrar is not None:
        if sip.mode != "redirect":
            raise ConfigError(f'{source}: sip.registrar: only mode = "redirect" asks a registrar elsewhere')
        address, colon, port = sip.registrar.partition(":")
        _check_address(address, source, "sip.registrar")
        if not (colon and port.isdecimal() and 0 < int(port) < 65536):
            raise ConfigError(
                f'{source}: sip.registrar: "{sip.registrar}" is no address and port; write "198.51.100.1:5070"'
            )
    if sip.domain and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", sip.domain):
        raise ConfigError(f'{source}: sip.domain: "{sip.domain}" is no domain name; write it as "example.org"')


def _check_address(text: str | None, source: str, key: str) -> None:
    if text is None:
        return
    try:
        IPv4Address(text)
    except ValueError:
        raise ConfigError(f'{source}: {key}: "{text}" is not an IPv4 address; write it as "192.0.2.1"') from None


_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]*)`(?: - at `\$\.?(?P<where>[^`]*)`)?")
_WRONG = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<where>[^`]*)`)?$")


def _explain(message: str, raw: dict[str, Any]) -> str:
    """Turn msgspec's message into one that names the key and what is allowed."""
    if unknown := _UNKNOWN.search(message):
        table = re.sub(r"\[[^]]*\]", "", unknown["where"] or "")
        fields = _table_type(table).__struct_fields__
        close = difflib.get_close_matches(unknown["name"], fields, n=1)
        key = f"{table}.{unknown['name']}" if table else unknown["name"]
        hint = f'; did you mean "{close[0]}"?' if close else "."
        return f"{key}: there is no such key{hint} Allowed here: {', '.join(fields)}"
    wrong = _WRONG.match(message)
    where = (wrong["where"] if wrong else None) or ""
    key = re.sub(r"\[.*", "", where)
    value: Any = raw
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else value
    return f"{key}: {value!r} is not allowed; write {_allowed(key)}"


def _table_type(table: str) -> type[Struct]:
    kind: type[Struct] = Config
    for name in table.split(".") if table else ():
        hint = get_type_hints(kind)[name]
        kind = get_args(hint)[0] if get_origin(hint) is list else hint
    return kind


def _allowed(key: str) -> str:
    """The description that a key's type carries."""
    table, _, name = key.rpartition(".")
    hint = get_type_hints(_table_type(table), include_extras=True).get(name)
    if isinstance(hint, type) and issubclass(hint, Struct):
        return f"a table [{key}]"
    for part in (hint, *get_args(hint)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, Meta) and meta.description:
                return meta.description
    return "another type of value"
