"""Programs come and go without a trace, and beside the filters of others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnat.dataplane import attach, loader
from dnat.errors import PlatformError, UsageError
from dnat.system import netns

FOREIGN = 49152
"""Priority of a filter that somebody else added."""


@pytest.fixture
def interface() -> Iterator[str]:
    """An Ethernet interface in a namespace of its own, which the test is in."""
    name = f"bpf{os.getpid()}-attach"
    netns.create(name)
    with netns.enter(name):
        run("ip link add test0 type veth peer name test1")
        yield "test0"
    netns.delete(name)


@pytest.fixture
def program(host_pins: Path) -> Path:
    return loader.program_pin(host_pins, "host_in")


def run(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True, timeout=20).stdout


def add_foreign_filter(direction: str, pin: Path) -> None:
    run(f"tc filter add dev test0 {direction} pref {FOREIGN} protocol all bpf da pinned {pin}")


def state() -> str:
    """Queues and filters as ``tc`` shows them."""
    directions = ("ingress", "egress")
    filters = "".join(run(f"tc filter show dev test0 {direction}") for direction in directions)
    return run("tc qdisc show dev test0") + filters


def test_a_bare_interface_is_bare_again(interface: str, program: Path) -> None:
    before = state()
    assert attach.attach(interface, "ingress", program, "one") is True
    assert attach.attach(interface, "egress", program, "two") is False
    assert (attach.attached(interface, "ingress"), attach.attached(interface, "egress")) == ("one", "two")
    attach.detach(interface, "egress", clsact_added=False)
    attach.detach(interface, "ingress", clsact_added=True)
    assert state() == before


def test_replacing_leaves_one_filter(interface: str, program: Path) -> None:
    attach.attach(interface, "ingress", program, "old")
    attach.attach(interface, "ingress", program, "new")
    assert "old" not in state()
    assert state().count("direct-action") == 1
    assert attach.attached(interface, "ingress") == "new"


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_filters_of_others_stay(interface: str, program: Path, direction: attach.Direction) -> None:
    run("tc qdisc add dev test0 clsact")
    add_foreign_filter(direction, program)
    before = state()
    assert attach.attach(interface, direction, program, "ours") is False
    assert attach.attached(interface, direction) == "ours"
    attach.detach(interface, direction, clsact_added=False)
    assert state() == before


def test_clsact_stays_while_others_use_it(interface: str, program: Path) -> None:
    assert attach.attach(interface, "ingress", program, "ours") is True
    add_foreign_filter("egress", program)
    attach.detach(interface, "ingress", clsact_added=True)
    assert "clsact" in state()
    assert f"pref {FOREIGN}" in state()


def test_detaching_what_is_not_there_does_nothing(interface: str) -> None:
    before = state()
    attach.detach(interface, "ingress", clsact_added=True)
    attach.detach(interface, "egress", clsact_added=False)
    attach.detach("nothing0", "egress", clsact_added=True)
    assert state() == before


def test_an_unknown_interface_is_named_with_those_there_are(interface: str, program: Path) -> None:
    with pytest.raises(UsageError, match=r"no interface called nothing0; there are: .*test0"):
        attach.attach("nothing0", "ingress", program, "ours")


def test_an_interface_that_is_not_ethernet(interface: str, program: Path) -> None:
    run("ip tuntap add dev tun7 mode tun")
    with pytest.raises(PlatformError, match="not an Ethernet"):
        attach.attach("tun7", "ingress", program, "ours")


@pytest.mark.parametrize("pin", ["missing", "abi-1/maps/counters"], ids=["no pin", "a pin that is no program"])
def test_a_failed_attachment_leaves_the_interface_bare(interface: str, host_pins: Path, pin: str) -> None:
    before = state()
    with pytest.raises(PlatformError):
        attach.attach(interface, "ingress", host_pins / pin, "ours")
    assert state() == before
