"""``dnatctl show`` against what docs/show.md promises to programs, and what people need to be able to read."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from nodes import Lab

from dnat.types import Protocol, Purpose

UDP = socket.SOCK_DGRAM


def port(value: object) -> bool:
    return type(value) is int and 1 <= value <= 65535


def whole(value: object) -> bool:
    return type(value) is int and value >= 0


def seconds(value: object) -> bool:
    return type(value) in (int, float) and value >= 0  # type: ignore[operator]


def maybe_text(value: object) -> bool:
    return isinstance(value, str)


def text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def address(value: object) -> bool:
    return isinstance(value, str) and str(IPv4Address(value)) == value


def identifier(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None


def flag(value: object) -> bool:
    return isinstance(value, bool)


def one_of(*words: str) -> Any:
    return lambda value: value in words


PROTOCOL = one_of(*(protocol.label for protocol in Protocol))
LEASE = {
    "id": identifier,
    "address": address,
    "first": port,
    "last": port,
    "protocol": PROTOCOL,
    "purpose": one_of(*(purpose.label for purpose in Purpose)),
    "expires_in": whole,
}
BINDING = {"protocol": PROTOCOL, "local_port": port, "address": address, "port": port, "idle": seconds, "static": flag}
OWNER = {"address": address, "first": port, "last": port, "protocol": PROTOCOL, "host": address}
PROGRAM = {"program": text, "pid": whole, "ports": [port]}
LOSS = {
    "address": address,
    "first": port,
    "last": port,
    "purpose": one_of(*(purpose.label for purpose in Purpose)),
    "at": text,
    "reason": text,
    "outcome": one_of("ends", "moves", "kept", "unused"),
    "programs": [PROGRAM],
}
CONTAINERS = {"translated": flag, "masquerader": maybe_text, "reason": maybe_text}
COUNTERS = {re.compile("[a-z_]+"): whole}
PAP = {re.compile("[a-z-]+"): whole}


def _document(lease: Any, pap: Any) -> Any:
    return {
        "schema": lambda value: value == 1,
        "instance": text,
        "roles": [one_of("host", "server", "router")],
        "external_addresses": [address],
        "leases": [lease],
        "bindings": [BINDING],
        "owners": [OWNER],
        "lost": [LOSS],
        "counters": COUNTERS,
        "pap": pap,
    }


DOCUMENTS = {
    "phone1": _document(LEASE, {"agent": PAP}) | {"containers": CONTAINERS},
    "router": _document(LEASE | {"host": address}, {"server": PAP})
    | {"router": {"lan": text, "wan": text, "path": one_of("tc", "xdp"), "reason": maybe_text}},
}
"""A list holds any number of what it shows; a pattern for a key stands for any number of keys."""


def _faults(value: Any, schema: Any, where: str) -> list[str]:
    """Where a value is not what its schema says."""
    if callable(schema):
        return [] if schema(value) else [f"{where}: {value!r}"]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{where}: no list"]
        return [fault for n, each in enumerate(value) for fault in _faults(each, schema[0], f"{where}[{n}]")]
    if not isinstance(value, dict):
        return [f"{where}: no object"]
    faults = []
    for key, each in value.items():
        expected = next(
            (s for k, s in schema.items() if k == key or (isinstance(k, re.Pattern) and k.fullmatch(key))), None
        )
        faults += [f"{where}.{key}: not documented"] if expected is None else _faults(each, expected, f"{where}.{key}")
    return faults + [f"{where}.{key}: missing" for key in schema if isinstance(key, str) and key not in value]


@pytest.fixture(scope="module")
def busy(routed_lab: Lab) -> Iterator[Lab]:
    """Leases of every purpose, a binding, and some packets."""
    phone = routed_lab["phone1"]
    lease = phone.request("--ports", "2", "--protocol", "udp")
    with phone.socket(UDP, 4567) as sock:
        sock.sendto(b"?", (routed_lab.ext, 7))
        sock.recv(10)
    yield routed_lab
    phone.dnatctl("release", lease["id"])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_document_is_what_was_promised(busy: Lab, name: str) -> None:
    node = busy[name]
    document = node.show()
    assert _faults(document, DOCUMENTS[name], "show") == []
    assert document["instance"] == node.namespace
    assert document["external_addresses"] == [busy.external]
    assert document["roles"] == list(busy.topology.node(name).roles)
    assert all(lease["first"] <= lease["last"] and 0 < lease["expires_in"] <= 3600 for lease in document["leases"])
    assert any(document["counters"].values())


def test_the_document_tells_what_is_the_case(busy: Lab) -> None:
    phone, router = busy["phone1"].show(), busy["router"].show()
    assert sorted(lease["purpose"] for lease in phone["leases"]) == ["ephemeral", "explicit", "translated"]
    assert phone["owners"] == [] and router["bindings"] == []
    (binding,) = (one for one in phone["bindings"] if one["local_port"] == 4567)
    (pool,) = (lease for lease in phone["leases"] if lease["purpose"] == "translated")
    assert pool["first"] <= binding["port"] <= pool["last"]
    assert binding["address"] == busy.external

    by_id = {lease["id"]: lease for lease in router["leases"]}
    host = busy["phone1"].address
    for lease in phone["leases"]:
        known = by_id[lease["id"]]
        assert known["host"] == host
        assert abs(known["expires_in"] - lease["expires_in"]) <= 2
        assert {key: known[key] for key in lease if key != "expires_in"} == {
            key: lease[key] for key in lease if key != "expires_in"
        }
        assert {key: known[key] for key in OWNER} in router["owners"]
    assert len(router["owners"]) == len(router["leases"])


def test_every_field_is_documented(busy: Lab) -> None:
    documentation = (Path(__file__).parents[2] / "docs/show.md").read_text()
    for schema in (*DOCUMENTS.values(), LEASE, BINDING, OWNER, LOSS, PROGRAM, CONTAINERS):
        for field in schema:
            assert f"`{field}`" in documentation


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("section", ["leases", "bindings", "owners", "lost", "counters"])
def test_one_section(busy: Lab, name: str, section: str) -> None:
    node = busy[name]
    (only,) = json.loads(node.dnatctl("show", section, "-o", "json").stdout).items()
    assert only[0] == section
    assert _faults(only[1], DOCUMENTS[name][section], section) == []
    assert node.dnatctl("show", section).stdout.startswith(section)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables_are_whole_in_a_pipe_whatever_the_terminal(busy: Lab, name: str) -> None:
    """Everything that the document says is a word of the tables, cut off nowhere."""
    node = busy[name]
    document = node.show()
    said = node.run("env", "COLUMNS=30", "TERM=dumb", "dnatctl", "show").stdout
    assert "…" not in said and "\x1b" not in said
    words = set(said.replace(":", " : ").split())
    for lease in document["leases"]:
        ports = str(lease["first"]) if lease["first"] == lease["last"] else f"{lease['first']}-{lease['last']}"
        assert {ports, lease["address"], lease["purpose"], lease["protocol"], lease["id"]} <= words
    for binding in document["bindings"]:
        assert f"{binding['address']}:{binding['port']}" in said
    assert {reason for reason, packets in document["counters"].items() if packets} <= words
    assert set(said.splitlines()[0].replace(",", " ").split()) >= {document["instance"], *document["roles"]}


@pytest.mark.parametrize("command", ["show", "show leases", "history", "key list"])
def test_tables_are_whole_on_a_narrow_terminal(busy: Lab, command: str) -> None:
    """Lines are too long, then, rather than an address or a port cut off."""
    router = busy["router"]
    in_a_pipe = router.dnatctl(*command.split()).stdout
    narrow = f"stty cols 50; NO_COLOR=1 dnatctl {command}"
    seen = router.run("script", "-qec", narrow, "/dev/null").stdout
    assert "…" not in seen
    addresses = re.compile(r"[0-9a-f]{16}|[0-9]+\.[0-9.]+|[0-9]{4,5}-[0-9]{4,5}")
    assert addresses.findall(seen) == addresses.findall(in_a_pipe)


def test_looking_is_for_everybody(busy: Lab) -> None:
    """A user may look, and not touch."""
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "dnatctl")
    phone = busy["phone1"]
    seen = json.loads(phone.run(*nobody, "show", "-o", "json").stdout)["leases"]
    assert [lease["id"] for lease in seen] == [lease["id"] for lease in phone.show()["leases"]]
    phone.run(*nobody, "status")
    for command in (("request",), ("release", "4567"), ("up",), ("down",)):
        refused = phone.run(*nobody, *command, code=4)
        assert "sudo" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_looking_is_quick(busy: Lab) -> None:
    """Programs ask often: well under half a second, of which Python takes most."""
    measure = "TIMEFORMAT=%U; for n in 1 2 3; do time dnatctl show -o json > /dev/null; done"
    assert min(map(float, busy["phone1"].run("bash", "-c", measure).stderr.split())) < 0.5


def test_nothing_to_show(busy: Lab) -> None:
    assert "sudo dnatctl up" in busy["ext"].dnatctl("show", code=5).stderr
