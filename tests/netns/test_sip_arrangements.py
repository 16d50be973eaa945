"""Who does what where: registrar and redirect server apart, and a proxy server on the other network."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from nodes import Lab, Node, eventually
from sip_messages import SipClient, request
from sip_phones import SipPhone, converse

from dnat.sip import certificate, configuration, database
from dnat.sip.configuration import ServerConfiguration
from dnat.system import netns

REGISTRAR_PORT = 5070


@contextmanager
def configured(node: Node, text: str) -> Iterator[Node]:
    """The node up with this configuration; as before afterwards."""
    path = node.dnat_toml
    before = path.read_text() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    node.dnatctl("down")
    path.write_text(text)
    try:
        node.dnatctl("up")
        yield node
    finally:
        node.dnatctl("down", code=None)
        path.unlink() if before is None else path.write_text(before)
        node.dnatctl("up")


def _registrations(node: Node) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(node.dnatctl("sip", "registrations", "-o", "json").stdout)
    return found


def test_a_registrar_and_a_redirect_server_on_two_machines(sip_lab: Lab, tmp_path: Path) -> None:
    """Claims 11, 12, 32, 33, 34: the phone registers with the one, the other holds 5060 and answers 302."""
    place = f"{sip_lab.external}:{REGISTRAR_PORT}"
    registrar = f'roles = ["host", "sip"]\n[sip]\nmode = "registrar"\nport = {REGISTRAR_PORT}\ntls_port = 0\n'
    redirect = f'roles = ["host", "sip"]\n[sip]\nmode = "redirect"\nregistrar = "{place}"\n'
    with (
        configured(sip_lab["phone2"], registrar) as second,
        configured(sip_lab["sip"], redirect) as first,
        SipPhone(sip_lab["ext"], tmp_path / "ext", 880).outside() as ext,
        SipClient(sip_lab["ext"], sip_lab.external) as stranger,
        SipClient(sip_lab["ext"], sip_lab.external, REGISTRAR_PORT) as beside,
    ):
        second.dnatctl("sip", "users", "add", "alice", "--password", "secret-alice")
        phone = SipPhone(sip_lab["phone1"], tmp_path / "alice", 440)
        with phone.provision("alice", "--server", place, "--domain", sip_lab.external) as alice:
            alice.registered()
            (registration,) = _registrations(second)
            assert f"@{sip_lab.external}:{alice.ports.first}" in registration["contact"]
            assert _registrations(first) == []
            assert f"asks the registrar at {place}" in first.dnatctl("sip", "status").stdout
            answer = stranger.exchange(request("INVITE", alice.identity, "sip:me@203.0.113.2"))
            assert answer.startswith("SIP/2.0 302 ")
            assert re.search(rf"Contact: <sip:alice[^>]*@{sip_lab.external}:{alice.ports.first}", answer)
            assert stranger.ask(request("INVITE", f"sip:nobody@{sip_lab.external}", "sip:me@203.0.113.2")) == 404
            converse(ext, alice, alice.identity)
        # Users are proven to the registrar, calls come by way of the redirect server, and neither relays.
        identity = f"sip:alice@{sip_lab.external}"
        assert stranger.ask(request("REGISTER", f"sip:{sip_lab.external}", identity, to=identity)) == 403
        assert beside.ask(request("INVITE", identity, "sip:me@203.0.113.2")) == 403
        for client in (stranger, beside):
            assert client.ask(request("INVITE", "sip:victim@203.0.113.77", identity)) == 403
            assert client.ask(request("OPTIONS", f"sip:{sip_lab.external}", "sip:me@203.0.113.2")) == 200


@contextmanager
def provider(node: Node, directory: Path, *users: str) -> Iterator[str]:
    """A SIP proxy and registrar outside, which knows nothing of dnat; its address."""
    realm = "provider"
    database.ensure(directory / "users.sqlite", directory / "registrations.sqlite")
    for user in users:
        database.set_user(directory / "users.sqlite", user, realm, f"secret-{user}")
    pair = certificate.ensure(directory / "tls", node.address, IPv4Address(node.address))
    settings = ServerConfiguration(
        mode="proxy", registrar=None, address=IPv4Address(node.address), port=5060, tls_port=None, domain=node.address,
        realm=realm, certificate=pair[0], key=pair[1], users=directory / "users.sqlite",
        registrations=directory / "registrations.sqlite", rpc_socket=directory / "rpc.sock", secret="outside",
        block_rate=2000, address_rate=5000,
    )  # fmt: skip
    path = directory / "kamailio.cfg"
    path.write_text(configuration.render(settings))
    command = [configuration.program(), "-DD", "-E", "-f", str(path), "-Y", str(directory), "-w", str(directory)]
    hold = database.Hold(settings.users, settings.registrations)
    with (directory / "log").open("w") as log:
        process = netns.popen(command, node.namespace, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        with SipClient(node, node.address) as client:
            eventually(lambda: _answers(client, node.address), "the provider's server answers", 20)
        yield node.address
    finally:
        process.terminate()
        process.wait(10)
        hold.close()


def _answers(client: SipClient, address: str) -> bool:
    try:
        return client.ask(request("OPTIONS", f"sip:{address}", "sip:me@192.0.2.1")) == 200
    except OSError:
        return False


@pytest.mark.parametrize("encryption", ["none", "sdes"])
def test_a_proxy_server_on_the_other_network(sip_lab: Lab, tmp_path: Path, encryption: str) -> None:
    """Claims 8, 26: phones inside are users of a proxy outside, which knows them by their combination addresses.

    It takes a call to the phone and one from it.
    """
    ext = sip_lab["ext"]
    (tmp_path / "provider").mkdir()
    options = ("--encryption", encryption)
    with provider(ext, tmp_path / "provider", "alice", "bob") as server:
        phone = SipPhone(sip_lab["phone1"], tmp_path / "alice", 440).provision("alice", "--server", server, *options)
        outside = SipPhone(ext, tmp_path / "bob", 880).outside("bob", encryption, server)
        with phone as alice, outside as bob:
            alice.registered()
            bob.registered()
            (contact,) = [
                one.contact
                for one in database.registrations(tmp_path / "provider/registrations.sqlite")
                if one.user == "alice"
            ]
            assert f"@{sip_lab.external}:{alice.ports.first}" in contact
            converse(bob, alice, f"sip:alice@{server}")
            converse(alice, bob, f"sip:bob@{server}")
