"""What an operator does to leases while hosts use them: taking back, draining, another pool."""

from __future__ import annotations

import csv
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from nodes import OTHER_EXTERNAL, Lab, Node, eventually, operated_lab
from prometheus_client.parser import text_string_to_metric_families

from dnat.client import Client, lease
from dnat.instance import Instance
from dnat.lab.topology import Topology

TCP = socket.SOCK_STREAM
SWITCH_SECONDS = 1.0
CONFIGURATION = """\
roles = ["server", "router"]

[server]
external_addresses = [{addresses}]
excluded_ports = ["10000-19999"]

[[server.reserved]]
ports = "5060-5061"
hosts = ["10.66.0.20"]
permanent = true

[metrics]
listen = "10.66.0.1:9437"

[router]
lan = "lan"
wan = "wan"
"""


@pytest.fixture(scope="module")
def lab(_root: None) -> Iterator[Lab]:
    """A routed lab with an operator's configuration; phone1 and the SIP machine are up."""
    topology = Topology(prefix=f"dt{os.getpid()}q", phones=1)
    with operated_lab(topology, with_addresses(str(topology.external)), ("phone1", "sip")) as lab:
        yield lab


def with_addresses(*addresses: str) -> str:
    return CONFIGURATION.format(addresses=", ".join(f'"{each}"' for each in addresses))


def configure(lab: Lab, *addresses: str) -> None:
    lab["router"].dnat_toml.write_text(with_addresses(*addresses))


def seen_from(node: Node, lab: Lab) -> str:
    return node.run("curl", "-sS", "-m", "5", f"http://{lab.ext}/").stdout.rpartition(":")[0]


def test_well_known_ports_are_for_who_is_named_and_for_ever(lab: Lab) -> None:
    phone, proxy = lab["phone1"], lab["sip"]
    assert "reserved for other hosts" in phone.dnatctl("request", "--port", "5060", code=3).stderr
    lease = proxy.request("--port", "5060")
    assert lease["expires_in"] > 100 * 365 * 86400
    assert "never expires" in proxy.dnatctl("show", "leases").stdout
    proxy.dnatctl("release", "5060")


def test_excluded_ports_are_not_leased(lab: Lab) -> None:
    assert lab["phone1"].ports("ephemeral").first >= 20000
    assert "does not give out" in lab["phone1"].dnatctl("request", "--port", "12000", code=3).stderr


def test_a_lease_that_is_taken_back_is_gone_on_both_sides(lab: Lab) -> None:
    phone, router = lab["phone1"], lab["router"]
    first = phone.request("--ports", "1")["first"]
    port = str(first)
    said = router.dnatctl("invalidate", port, "--reason", "by mistake", "-o", "json").stdout
    taken = {"host": phone.address, "address": lab.external, "first": first, "last": first}
    assert json.loads(said) == {"leases": 1, "taken": [taken]}
    eventually(lambda: not any(str(each["first"]) == port for each in phone.show()["leases"]), "the host has heard")
    assert "by mistake" in Path(f"/run/dnat/{phone.namespace}/daemon.log").read_text()
    assert "nobody leases" in router.dnatctl("invalidate", port, code=2).stderr


def test_a_host_that_lost_its_own_ports_gets_others_at_once(lab: Lab) -> None:
    phone, router = lab["phone1"], lab["router"]
    before = {each["id"] for each in phone.show()["leases"]}
    router.dnatctl("invalidate", "--host", phone.address)
    eventually(
        lambda: len(now := {each["id"] for each in phone.show()["leases"]}) == len(before) and not now & before,
        "the host has ports again",
        SWITCH_SECONDS,
    )
    assert seen_from(phone, lab) == lab.external


def test_who_held_a_port_when(lab: Lab) -> None:
    phone, router = lab["phone1"], lab["router"]
    before = datetime.now(UTC).isoformat(timespec="milliseconds")
    port = str(phone.request("--ports", "1")["first"])
    during = datetime.now(UTC).isoformat(timespec="milliseconds")
    phone.dnatctl("release", port)
    endpoint = f"{lab.external}:{port}"
    (record,) = json.loads(router.dnatctl("whois", endpoint, "--at", during, "-o", "json").stdout)
    assert (record["host"], record["first"], record["purpose"]) == (phone.address, int(port), "explicit")
    assert record["since"] <= during <= record["until"]
    assert phone.address in router.dnatctl("whois", endpoint, "--at", during, "--protocol", "udp").stdout
    for at in (["--at", before], []):
        assert "nobody held" in router.dnatctl("whois", endpoint, *at, code=3).stderr
    rows = list(csv.DictReader(router.dnatctl("history", "-o", "csv").stdout.splitlines()))
    assert {row["host"] for row in rows if row["first"] == port} == {phone.address}
    assert json.loads(router.dnatctl("history", "--since", during, "-o", "json").stdout)
    for wrong in (["whois", "198.51.100.1"], ["whois", endpoint, "--at", "noon"], ["history", "--address", "x"]):
        router.dnatctl(*wrong, code=2)


def test_metrics_of_every_role(lab: Lab) -> None:
    phone, router = lab["phone1"], lab["router"]
    seen_from(phone, lab)
    text = phone.dnatctl("metrics").stdout
    assert f'dnat_leases{{address="{lab.external}",protocol="any",purpose="ephemeral",role="host"}} 1.0' in text
    assert "dnat_bindings" in text and "dnat_program_leases 0.0" in text and "dnat_api_connections" in text
    scraped = router.run("curl", "-sS", "-m", "5", "http://10.66.0.1:9437/metrics").stdout
    samples = {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(scraped)
        for sample in family.samples
    }
    assert samples["dnat_pool_ports", frozenset({lab.external})] > 30_000
    assert any(value > 0 for (name, labels), value in samples.items() if name == "dnat_packets_total")
    leased = sum(each["last"] - each["first"] + 1 for each in router.show()["leases"])
    assert samples["dnat_owned_ports", frozenset({lab.external})] == leased
    assert samples["dnat_pap_messages_total", frozenset({"server", "want-success"})] > 0


def test_a_busy_server_is_asked_again(lab: Lab) -> None:
    """Two new leases at once and one a second: whoever asks for more waits, and gets them."""
    phone, router = lab["phone1"], lab["router"]
    path = router.dnat_toml
    usual = path.read_text()
    path.write_text(usual.replace("[server]", "[server]\nnew_leases_per_second = 1"))
    router.dnatctl("reload")
    ports = []
    socket = Instance(phone.namespace).socket
    with Client(socket) as one, Client(socket) as two, ThreadPoolExecutor(2) as pool:
        for leases in pool.map(lambda client: [client.call("request")["lease"] for _ in range(3)], (one, two)):
            ports += [str(lease["first"]) for lease in leases]
    assert len(set(ports)) == 6
    assert router.show()["pap"]["server"]["want-busy"] > 0
    phone.dnatctl("release", *ports)
    path.write_text(usual)
    router.dnatctl("reload")


def test_draining_grants_nothing_new_and_cuts_nothing(lab: Lab) -> None:
    phone, router = lab["phone1"], lab["router"]
    assert "draining" in router.dnatctl("drain").stdout
    assert "shutting down" in phone.dnatctl("request", "--ports", "1", code=3).stderr
    assert seen_from(phone, lab) == lab.external
    said = json.loads(router.dnatctl("drain", "--off", "-o", "json").stdout)
    assert said["leases"] == 0 and "draining" not in said["summary"]
    phone.dnatctl("release", str(phone.request("--ports", "1")["first"]))


def test_hosts_switch_to_another_external_address_within_a_second(lab: Lab) -> None:
    """Both addresses are served for a while, the old one is drained, and then it goes. What spoke from it ends."""
    phone, router = lab["phone1"], lab["router"]
    configure(lab, lab.external, OTHER_EXTERNAL)
    router.dnatctl("reload")
    assert phone.show()["external_addresses"] == [lab.external]
    path = Instance(phone.namespace).socket
    with ExitStack() as stack:
        watcher, program = stack.enter_context(Client(path)), stack.enter_context(lease(path=path))
        watcher.call("watch")
        native = stack.enter_context(phone.socket(TCP))
        translated = stack.enter_context(phone.socket(TCP, 4444))
        local = stack.enter_context(phone.socket(TCP, address=phone.address))
        for connection in (native, translated):
            connection.connect((lab.ext, 7))
        server = stack.enter_context(lab["sip"].socket(TCP, 4445, listen=True))
        local.connect((lab["sip"].address, 4445))
        accepted = stack.enter_context(server.accept()[0])
        for connection in (native, translated):
            connection.sendall(b"one")
            assert connection.recv(100) == b"one"
        router.dnatctl("drain", lab.external)
        eventually(
            lambda: phone.show()["external_addresses"] == [OTHER_EXTERNAL], "the host has switched", SWITCH_SECONDS
        )
        for connection in (native, translated):
            with pytest.raises(ConnectionAbortedError):
                connection.recv(100)
        accepted.sendall(b"the LAN is not concerned")
        assert local.recv(100) == b"the LAN is not concerned"
        assert program.wait(20) and "out of service" in program.reason
        said: list[dict[str, Any]] = []
        while not said or said[-1].get("address") != OTHER_EXTERNAL:
            said.append(watcher.event())
        lost = [each for each in said if each["event"] == "lost"]
        assert {each["code"] for each in lost} == {"address-changed"} and len(lost) == 3
        assert next(each["former"] for each in said if each["event"] == "address") == lab.external
        assert all(each["port"] in phone.ports("translated") for each in phone.show()["bindings"])
    eventually(lambda: seen_from(phone, lab) == OTHER_EXTERNAL, "traffic leaves from the new address")
    configure(lab, OTHER_EXTERNAL)
    router.dnatctl("reload")
    assert seen_from(phone, lab) == OTHER_EXTERNAL


def test_a_pool_that_was_exchanged_is_announced_to_everybody(lab: Lab) -> None:
    """The old address is gone from one moment to the next."""
    configure(lab, lab.external)
    lab["router"].dnatctl("reload")
    for name in ("phone1", "sip"):
        node = lab[name]
        eventually(
            lambda node=node: node.show()["external_addresses"] == [lab.external],
            f"{name} has switched",
            SWITCH_SECONDS,
        )
    assert seen_from(lab["phone1"], lab) == lab.external


def test_a_configuration_that_does_not_hold_changes_nothing(lab: Lab) -> None:
    router = lab["router"]
    path = router.dnat_toml
    good, pid = path.read_text(), router.pid()
    path.write_text(good + "[sever]\n")
    assert "sever" in router.dnatctl("reload", code=2).stderr
    path.write_text(good)
    assert router.pid() == pid
    assert json.loads(router.dnatctl("status", "-o", "json").stdout)["pid"] == pid


def test_reload_of_what_does_not_work_goes_back(routed_lab: Lab, tmp_path: Path) -> None:
    """A file that holds and yet cannot be: the machine stays what it was."""
    phone = routed_lab["phone1"]
    before = phone.leases()
    path = tmp_path / "dnat.toml"
    path.write_text('[host]\ninterface = "nothing0"\n')
    said = phone.dnatctl("reload", "--config", str(path), code=4).stderr
    assert "no interface called nothing0" in said and "the former configuration is in use again" in said
    assert len(said.splitlines()) == 1
    assert "up as host" in phone.dnatctl("status").stdout
    assert phone.leases() == before
    # What is in use is what the next one goes back to.
    path.write_text("[host]\ntranslated_ports = 48\n")
    phone.dnatctl("reload", "--config", str(path))
    path.write_text('[host]\ninterface = "nothing0"\n')
    phone.dnatctl("reload", "--config", str(path), code=4)
    assert "48" in (phone.runtime / "dnat.toml").read_text()
    assert json.loads(phone.dnatctl("reload", "-o", "json").stdout)["summary"].startswith(
        f"{routed_lab.external} ports "
    )
