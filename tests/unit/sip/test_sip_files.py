"""What is written for Kamailio and for phones, and Kamailio's own opinion of it."""

from __future__ import annotations

import hashlib
import sqlite3
import xml.etree.ElementTree as ET
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dnat.config import parse
from dnat.errors import ConfigError, PlatformError, UsageError
from dnat.sip import certificate, configuration, database
from dnat.sip.configuration import Mode, ServerConfiguration
from dnat.sip.provision import PhoneAccount, baresip, linphone
from dnat.types import PortRange

EXTERNAL = IPv4Address("198.51.100.1")

ACCOUNT = PhoneAccount(
    user="alice",
    domain="198.51.100.1",
    password="s3cret",
    server="198.51.100.1",
    server_port=5060,
    transport="udp",
    encryption="none",
    address=EXTERNAL,
    ports=PortRange(20000, 20015),
)


@pytest.fixture
def server(tmp_path: Path) -> ServerConfiguration:
    pair = certificate.ensure(tmp_path / "tls", "example.org", EXTERNAL)
    return ServerConfiguration(
        mode="proxy",
        registrar=None,
        # Kamailio checks its addresses by binding them.
        address=IPv4Address("127.0.0.1"),
        port=45060,
        tls_port=45061,
        domain="example.org",
        realm="example.org",
        certificate=pair[0],
        key=pair[1],
        users=tmp_path / "users.sqlite",
        registrations=tmp_path / "registrations.sqlite",
        rpc_socket=tmp_path / "rpc.sock",
        secret="00",
        block_rate=50,
        address_rate=500,
    )


@pytest.mark.skipif(not Path("/usr/sbin/kamailio").exists(), reason="Kamailio is not installed")
@pytest.mark.parametrize(
    ("mode", "registrar"),
    [("proxy", None), ("redirect", None), ("redirect", "198.51.100.1:5070"), ("registrar", None)],
    ids=["proxy", "redirect", "redirect-asks", "registrar"],
)
@pytest.mark.parametrize("tls_port", [None, 45061], ids=["no-tls", "tls"])
def test_kamailio_takes_the_configuration(
    server: ServerConfiguration, tmp_path: Path, mode: Mode, registrar: str | None, tls_port: int | None
) -> None:
    path = tmp_path / "kamailio.cfg"
    path.write_text(configuration.render(replace(server, mode=mode, registrar=registrar, tls_port=tls_port)))
    configuration.check(path)


@pytest.mark.skipif(not Path("/usr/sbin/kamailio").exists(), reason="Kamailio is not installed")
def test_a_wrong_configuration_is_refused_in_kamailios_words(server: ServerConfiguration, tmp_path: Path) -> None:
    path = tmp_path / "kamailio.cfg"
    path.write_text(configuration.render(server).replace("request_route {", "request_route { nonsense("))
    with pytest.raises(PlatformError, match="Kamailio refuses"):
        configuration.check(path)


def test_an_address_is_no_alias(server: ServerConfiguration) -> None:
    """As an alias it would stand for every port of it, so for every phone of the site."""
    assert 'alias="example.org"' in configuration.render(server)
    assert "alias=" not in configuration.render(replace(server, domain="127.0.0.1")).replace("auto_aliases=no", "")


def test_passwords_are_kept_as_ha1(tmp_path: Path) -> None:
    users, registrations = tmp_path / "users.sqlite", tmp_path / "registrations.sqlite"
    for _ in range(2):
        database.ensure(users, registrations)
    assert database.set_user(users, "alice", "example.org", "first") is True
    assert database.set_user(users, "alice", "example.org", "s3cret") is False
    assert database.users(users) == ["alice"]
    with sqlite3.connect(users) as opened:
        ((stored,),) = opened.execute("SELECT ha1 FROM subscriber")
    opened.close()
    assert stored == hashlib.md5(b"alice:example.org:s3cret").hexdigest()
    assert b"s3cret" not in users.read_bytes()
    assert database.remove_user(users, "alice") and not database.remove_user(users, "alice")
    assert database.registrations(registrations) == []


@pytest.mark.parametrize("name", ["", "a b", "a@b", "-x", "x" * 64, "ä"])
def test_names_that_no_sip_address_has_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        database.set_user(tmp_path / "users.sqlite", name, "example.org", "x")


def test_a_certificate_is_made_once_and_again_for_another_name(tmp_path: Path) -> None:
    first, key = certificate.ensure(tmp_path, "example.org", EXTERNAL)
    text = first.read_text()
    assert certificate.ensure(tmp_path, "example.org", EXTERNAL)[0].read_text() == text
    assert certificate.ensure(tmp_path, "example.net", EXTERNAL)[0].read_text() != text
    assert key.stat().st_mode & 0o007 == 0


def test_baresip_gets_its_ports_and_nothing_else() -> None:
    written = baresip(ACCOUNT, Path("/phone"), None)
    assert "sip_listen 198.51.100.1:20000\n" in written.files["config"]
    assert "rtp_ports 20002-20015\n" in written.files["config"]
    assert "call_max_calls 7\n" in written.files["config"]
    assert written.files["accounts"].startswith("<sip:alice@198.51.100.1;transport=udp>;")
    assert written.start == "baresip -f /phone"


@pytest.mark.parametrize(
    ("encryption", "parameter"), [("none", ""), ("sdes", "mediaenc=srtp-mand"), ("dtls", "mediaenc=dtls_srtp")]
)
def test_baresip_encrypts_as_it_was_told(encryption: str, parameter: str) -> None:
    line = baresip(replace(ACCOUNT, encryption=encryption), Path("/phone"), None).files["accounts"]
    assert parameter in line and ("mediaenc" in line) == bool(parameter)


def test_a_server_elsewhere_is_named() -> None:
    line = baresip(replace(ACCOUNT, domain="example.org"), Path("/phone"), None).files["accounts"]
    assert 'outbound="sip:198.51.100.1:5060;transport=udp"' in line


def test_linphones_two_files_say_the_same() -> None:
    written = linphone(replace(ACCOUNT, transport="tls", encryption="sdes", password="a&b"), Path("/phone"))
    from_xml = {
        (section.get("name"), entry.get("name")): entry.text or ""
        for section in ET.fromstring(written.files["linphone.xml"])
        for entry in section
    }
    from_rc = {}
    section = ""
    for line in filter(None, written.files["linphonerc"].splitlines()):
        if line.startswith("["):
            section = line[1:-1]
        else:
            name, _, value = line.partition("=")
            from_rc[section, name] = value
    assert from_rc == from_xml
    assert from_rc["sip", "sip_tls_port"] == "20001" and from_rc["sip", "sip_port"] == "0"
    assert from_rc["rtp", "audio_rtp_port"] == "20002-20015"


@pytest.mark.parametrize("ports", [PortRange(20001, 20016), PortRange(20000, 20014), PortRange(20000, 20001)])
def test_blocks_that_no_rtp_fits_in_are_refused(ports: PortRange) -> None:
    with pytest.raises(UsageError, match="even"):
        replace(ACCOUNT, ports=ports)


@pytest.mark.parametrize("password", ["", 'a"b', "a b", "a\nmodule evil.so", "a<b"])
def test_passwords_cannot_break_out_of_a_configuration(password: str) -> None:
    with pytest.raises(UsageError, match="cannot carry"):
        replace(ACCOUNT, password=password)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ({"roles": ["sip"]}, '"sip" needs "host"'),
        ({"sip": {"mode": "relay"}}, 'write "proxy", "redirect" or "registrar"'),
        ({"sip": {"registrar": "198.51.100.1:5070"}}, 'only mode = "redirect"'),
        ({"sip": {"mode": "redirect", "registrar": "198.51.100.1"}}, "no address and port"),
        ({"sip": {"mode": "redirect", "registrar": "sip.example:5070"}}, "not an IPv4 address"),
        ({"sip": {"tls_port": 5060}}, "not sip.port"),
        ({"sip": {"certificate": "/a.pem"}}, "together"),
        ({"sip": {"domain": 'x" alias="y'}}, "no domain name"),
        ({"sip": {"users": "relative"}}, "a path in quotes"),
    ],
)
def test_wrong_sip_settings_are_explained(raw: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(raw, "dnat.toml")
