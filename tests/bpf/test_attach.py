"""Programs come and go without a trace, and beside the filters of others: by tcx, and by filters as on a kernel that
has no tcx.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnat.dataplane import abi, attach, loader, tcx
from dnat.dataplane.bpf import Command, bpf
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


@pytest.fixture
def other(host_pins: Path) -> Path:
    return loader.program_pin(host_pins, "host_out")


@pytest.fixture
def foreign_program() -> Iterator[int]:
    """One that leaves every packet alone, and has no name."""
    leave = struct.pack("=BBhi", 0xB7, 0, 0, -1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    instructions, license = ctypes.create_string_buffer(leave), ctypes.create_string_buffer(b"MIT")
    fields = (3, len(leave) // 8, ctypes.addressof(instructions), ctypes.addressof(license))
    fd, _ = bpf(Command.PROG_LOAD, "2I2Q", *fields)
    yield fd
    os.close(fd)


@pytest.fixture
def without_tcx(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel would answer that has none."""
    monkeypatch.setattr(tcx, "is_supported", lambda: False)


@pytest.fixture(params=["tcx", "filters"])
def way(request: pytest.FixtureRequest) -> str:
    if request.param == "filters":
        request.getfixturevalue("without_tcx")
    return str(request.param) if tcx.is_supported() else "filters"


def run(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True, timeout=20).stdout


def add_foreign_filter(direction: str, pin: Path) -> None:
    run(f"tc filter add dev test0 {direction} pref {FOREIGN} protocol all bpf da pinned {pin}")


def state() -> str:
    """Queues and filters as ``tc`` shows them, and programs at tcx."""
    directions: tuple[attach.Direction, ...] = ("ingress", "egress")
    filters = "".join(run(f"tc filter show dev test0 {direction}") for direction in directions)
    return run("tc qdisc show dev test0") + filters + str([by_tcx(direction) for direction in directions])


def by_tcx(direction: attach.Direction) -> list[int]:
    return tcx.programs(socket.if_nametoindex("test0"), direction) if tcx.is_supported() else []


def test_a_bare_interface_is_bare_again(interface: str, program: Path, other: Path, way: str, host_pins: Path) -> None:
    before = state()
    assert attach.needs_clsact(interface) == (way == "filters")
    assert attach.attach(interface, "ingress", program, "one") == (way == "filters")
    assert attach.attach(interface, "egress", other, "two") is False
    assert attach.runs(interface, "ingress", program, "one") and attach.runs(interface, "egress", other, "two")
    assert not attach.runs(interface, "ingress", other, "two")
    attach.detach(interface, "egress", pins=host_pins, clsact_added=False)
    attach.detach(interface, "ingress", pins=host_pins, clsact_added=True)
    assert not attach.runs(interface, "ingress", program, "one")
    assert state() == before


def test_replacing_leaves_one_program(interface: str, program: Path, other: Path, way: str) -> None:
    attach.attach(interface, "ingress", program, "old")
    attach.attach(interface, "ingress", other, "new")
    assert "old" not in state()
    assert state().count("direct-action") == (way == "filters")
    assert len(by_tcx("ingress")) == (way == "tcx")
    assert attach.runs(interface, "ingress", other, "new")


def test_a_filter_of_ours_is_replaced_by_a_filter(
    interface: str, program: Path, other: Path, monkeypatch: pytest.MonkeyPatch, host_pins: Path
) -> None:
    """No packet meets two programs when a version that knows tcx comes after one that does not."""
    with monkeypatch.context() as patch:
        patch.setattr(tcx, "is_supported", lambda: False)
        attach.attach(interface, "ingress", program, "old")
    attach.attach(interface, "ingress", other, "new")
    assert attach.runs(interface, "ingress", other, "new")
    assert by_tcx("ingress") == []
    attach.detach(interface, "ingress", pins=host_pins, clsact_added=True)
    assert "clsact" not in state()


def test_programs_of_others_at_tcx_stay(
    interface: str, program: Path, foreign_program: int, way: str, host_pins: Path
) -> None:
    if way == "tcx":
        tcx.attach(socket.if_nametoindex(interface), "egress", foreign_program, host_pins / "foreign")
    before = state()
    attach.attach(interface, "egress", program, "ours")
    assert attach.runs(interface, "egress", program, "ours")
    attach.detach(interface, "egress", pins=host_pins, clsact_added=True)
    assert state() == before


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_filters_of_others_stay(interface: str, program: Path, direction: attach.Direction, host_pins: Path) -> None:
    run("tc qdisc add dev test0 clsact")
    add_foreign_filter(direction, program)
    before = state()
    assert attach.attach(interface, direction, program, "ours") is False
    assert attach.runs(interface, direction, program, "ours")
    attach.detach(interface, direction, pins=host_pins, clsact_added=False)
    assert state() == before


@pytest.mark.usefixtures("without_tcx")
def test_clsact_stays_while_others_use_it(interface: str, program: Path, host_pins: Path) -> None:
    assert attach.attach(interface, "ingress", program, "ours") is True
    add_foreign_filter("egress", program)
    attach.detach(interface, "ingress", pins=host_pins, clsact_added=True)
    assert "clsact" in state()
    assert f"pref {FOREIGN}" in state()


@pytest.mark.usefixtures("way")
def test_detaching_what_is_not_there_does_nothing(interface: str, host_pins: Path) -> None:
    before = state()
    attach.detach(interface, "ingress", pins=host_pins, clsact_added=True)
    attach.detach(interface, "egress", pins=host_pins, clsact_added=False)
    attach.detach("nothing0", "egress", pins=host_pins, clsact_added=True)
    assert state() == before


def test_an_unknown_interface_is_named_with_those_there_are(interface: str, program: Path) -> None:
    with pytest.raises(UsageError, match=r"no interface called nothing0; there are: .*test0"):
        attach.attach("nothing0", "ingress", program, "ours")


def test_an_interface_that_is_not_ethernet(interface: str, program: Path) -> None:
    run("ip tuntap add dev tun7 mode tun")
    with pytest.raises(PlatformError, match="not an Ethernet"):
        attach.attach("tun7", "ingress", program, "ours")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("pin", ["missing", "maps/counters"], ids=["no pin", "a pin that is no program"])
def test_a_failed_attachment_leaves_the_interface_bare(interface: str, host_pins: Path, pin: str) -> None:
    before = state()
    with pytest.raises(PlatformError):
        attach.attach(interface, "ingress", host_pins / f"abi-{abi.ABI}" / pin, "ours")
    assert state() == before
