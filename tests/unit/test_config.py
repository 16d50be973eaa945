"""Bad configurations name file, key and what is allowed."""

from __future__ import annotations

import json
import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dnat.config import load, parse
from dnat.errors import ConfigError


def test_no_file_is_a_host_with_defaults() -> None:
    config = load(None)
    assert config.roles == ["host"]
    assert config.host.server is None


def test_a_router_with_its_server() -> None:
    config = parse(
        {
            "roles": ["server", "router"],
            "server": {"external_addresses": ["198.51.100.1"]},
            "router": {"lan": "lan", "wan": "wan"},
        },
        "dnat.toml",
    )
    assert config.server.lifetime == 3600
    assert config.router.lan == "lan"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"rolse": ["host"]}, 'rolse: there is no such key; did you mean "roles"?'),
        ({"roles": ["hots"]}, "roles: ['hots'] is not allowed; write a list of host, server, router"),
        ({"roles": []}, "roles: must name at least one of host, server, router"),
        ({"host": 3}, "host: 3 is not allowed; write a table [host]"),
        (
            {"host": {"ephemeral_port": 3}},
            'host.ephemeral_port: there is no such key; did you mean "ephemeral_ports"?',
        ),
        (
            {"host": {"colour": 3}},
            "Allowed here: interface, server, authentication, ephemeral_ports, ephemeral_ports_max",
        ),
        (
            {"host": {"ephemeral_ports": 0}},
            "host.ephemeral_ports: 0 is not allowed; write a whole number from 1 to 4096",
        ),
        (
            {"server": {"reserved": [{"ports": "5060", "hosts": ["x"], "port": 1}]}},
            'server.reserved.port: there is no such key; did you mean "ports"?',
        ),
        ({"host": {"timers": 3}}, "host.timers: 3 is not allowed; write a table [host.timers]"),
        (
            {"host": {"timers": {"udp": 30}}},
            "host.timers.udp: 30 is not allowed; write seconds, 120 to 86400 (RFC 4787, REQ-5)",
        ),
        (
            {"host": {"timers": {"tcp": 30}}},
            "host.timers.tcp: there is no such key. Allowed here: udp, tcp_established, tcp_transitory, icmp",
        ),
        (
            {"host": {"filtering": "none"}},
            'host.filtering: \'none\' is not allowed; write "endpoint-independent" or "address-dependent"',
        ),
        ({"host": {"exhausted": "reject"}}, 'host.exhausted: \'reject\' is not allowed; write "icmp" or "drop"'),
        ({"host": {"server": "sip.example"}}, 'host.server: "sip.example" is not an IPv4 address'),
        ({"roles": ["server"]}, 'server.external_addresses: the role "server" needs'),
        (
            {"server": {"external_addresses": ["::1"]}},
            'server.external_addresses: "::1" is not an IPv4 address',
        ),
        ({"server": {"ports": ["9-3"]}}, 'server.ports: "9-3" is not a port range'),
        ({"server": {"networks": ["10.66.0.1/24"]}}, "server.networks:"),
        ({"server": {"lifetime": 5}}, "server.lifetime: 5 is not allowed; write seconds, 60 to 86400"),
        ({"metrics": {"listen": "9437"}}, 'metrics.listen: "9437" is no address and port'),
        ({"metrics": {"listen": "127.0.0.1:0"}}, 'write "127.0.0.1:9437"'),
        ({"server": {"authentication": "some"}}, 'write "open", "tofu" or "strict"'),
        ({"server": {"reserved": [{"ports": "x", "hosts": ["a"]}]}}, 'server.reserved.ports: "x"'),
        ({"router": {"own_ports": "x"}}, 'router.own_ports: "x" is not a port range'),
        (
            {
                "roles": ["server", "router"],
                "server": {"external_addresses": ["198.51.100.1"]},
                "router": {"lan": "l"},
            },
            "router.wan: the role",
        ),
        ({"roles": ["router"], "router": {"lan": "l", "wan": "w"}}, 'roles: "router" needs "server" beside it'),
        ({"host": {"server": ["10.0.0.1", "x"]}}, 'host.server: "x" is not an IPv4 address'),
        ({"host": {"server": 5}}, "host.server: 5 is not allowed; write an IPv4 address in quotes, or a list of them"),
        ({"store": {"kind": "etcd"}}, 'store.endpoints: "etcd" needs its members here'),
        ({"store": {"endpoints": ["10.0.0.7"]}}, 'store.endpoints: "10.0.0.7" is no member'),
        ({"store": {"prefix": "dnat"}}, "store.prefix: 'dnat' is not allowed"),
        ({"store": {"certificate": "/c"}}, "store.key: certificate and key are given together"),
        ({"store": {"certificate": "/c", "key": "/k"}}, "store.ca: a certificate is shown over TLS only"),
    ],
)
def test_a_mistake_is_explained(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(raw, "/etc/dnat/dnat.toml")
    assert str(caught.value).startswith("/etc/dnat/dnat.toml: ")
    assert message in str(caught.value)


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "dnat.toml"
    path.write_text("roles = [")
    with pytest.raises(ConfigError, match=r"dnat\.toml is not valid TOML"):
        load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load(tmp_path / "none.toml")


def test_every_key_is_documented() -> None:
    """docs/configuration.md names each key in the section of its table, with its default."""
    text = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
    sections = dict(re.findall(r"^##+ `\[([a-z.]+)\]`\n(.*?)(?=^##|\Z)", text, re.M | re.S))
    config = load(None)
    for table in ("host", "host.timers", "server", "router", "sip", "store", "metrics"):
        settings = attrgetter(table)(config)
        for key in settings.__struct_fields__:
            default = getattr(settings, key)
            if isinstance(default, msgspec.Struct):
                continue
            (row,) = (line for line in sections[table].splitlines() if re.match(rf"\|[^|]*`{key}`", line))
            if default is not None and default != []:
                assert f"`{json.dumps(default)}`" in row, f"{table}.{key}"
