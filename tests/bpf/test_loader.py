"""What is pinned is kept: restarts compile nothing, upgrades adopt the maps, other ABI numbers start
afresh.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bpf_bench import DROP, EXTERNAL, REMOTE, Case, RouterBench, ether
from scapy.layers.inet import IP
from scapy.packet import Raw

from dnat.dataplane import abi, loader, objects
from dnat.dataplane.bpf import Map, MapType, map_create, object_pin
from dnat.dataplane.host import HostPlane
from dnat.errors import PlatformError
from dnat.types import PortRange, Protocol

PORTS = [(PortRange(20000, 20001), Protocol.ANY)]


@pytest.fixture
def own_pins(pins: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty pin directory; compiling is replaced, since only what gets pinned matters here."""
    compiled: list[Path] = []

    def pretend(role: abi.Role, maps: Path, programs: Path) -> None:
        compiled.append(maps)
        for name in objects.PROGRAMS[role]:
            object_pin(Map.pinned(maps / "counters").fd, programs / name)

    monkeypatch.setattr(loader, "_compile", pretend)
    path = pins / "loader"
    yield path
    loader.unload(path)
    assert not path.exists()


def native_word(pins: Path) -> int:
    words = Map.pinned(loader.maps_directory(pins) / "ports")
    return abi.PortWord.from_buffer_copy(words.get((20000 >> 4).to_bytes(4, "little")) or b"").native


def test_a_second_load_changes_nothing(own_pins: Path) -> None:
    assert loader.ensure_loaded("host", own_pins)
    before = loader.program_pin(own_pins, "host_out").stat().st_ino
    assert not loader.ensure_loaded("host", own_pins)
    assert loader.program_pin(own_pins, "host_out").stat().st_ino == before


def test_an_upgrade_with_the_same_abi_adopts_the_maps(own_pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader.ensure_loaded("host", own_pins)
    HostPlane.open(own_pins).set_ports(PORTS, [])
    old = loader.program_pin(own_pins, "host_out")
    monkeypatch.setattr(loader, "source_hash", lambda: "0123456789ab")
    assert loader.ensure_loaded("host", own_pins)
    assert native_word(own_pins)
    assert not old.exists()


def test_another_abi_number_starts_with_fresh_maps(own_pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader.ensure_loaded("host", own_pins)
    HostPlane.open(own_pins).set_ports(PORTS, [])
    old = loader.maps_directory(own_pins)
    monkeypatch.setattr(abi, "ABI", abi.ABI + 1)
    assert loader.ensure_loaded("host", own_pins)
    assert native_word(own_pins) == 0
    loader.forget_other_versions(own_pins)
    assert not old.exists() and loader.maps_directory(own_pins).exists()


def test_programs_keep_those_they_call_until_others_are_in_their_place(
    pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel clears a map of programs with its last pin."""
    path = pins / "successor"
    loader.ensure_loaded("router", path)
    later = ether(IP(src=REMOTE, dst=EXTERNAL, proto=17, frag=3) / Raw(b"m" * 16))
    with RouterBench(path) as former:
        former.plane._maps["stages"].close()
        monkeypatch.setattr(abi, "ABI", abi.ABI + 1)
        assert loader.ensure_loaded("router", path)
        former.check("router_wan", Case("ahead of its first one", later, DROP, "router_fragment_held"))
        loader.forget_other_versions(path)
        # The kernel lets go of a pin's map a little later.
        deadline = time.monotonic() + 30
        while "drop_stage_missing" not in former.run("router_wan", later).counted:
            assert time.monotonic() < deadline, "the map of programs lives on"
    loader.unload(path)


def test_a_pinned_map_of_another_shape_is_not_adopted(own_pins: Path) -> None:
    loader.ensure_loaded("host", own_pins)
    path = loader.maps_directory(own_pins) / "ports"
    path.unlink()
    object_pin(map_create(MapType.HASH, "ports", key_size=4, value_size=16, entries=8), path)
    assert loader.ensure_loaded("host", own_pins)
    assert Map.pinned(path).kind == MapType.ARRAY


def test_source_that_does_not_compile_leaves_a_log(pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "BPFFS", tmp_path / "bpf")
    loader._ensure_maps("router", loader.maps_directory(pins / "broken"))
    with pytest.raises(PlatformError, match="whole log") as failure:
        # The maps of the wrong role.
        loader._compile("host", loader.maps_directory(pins / "broken"), tmp_path)
    assert str(tmp_path / "compile-host.log") in str(failure.value)
    loader.unload(pins / "broken")


def test_without_root(monkeypatch: pytest.MonkeyPatch, pins: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(PlatformError, match="root"):
        loader.ensure_loaded("host", pins / "nobody")


def test_nothing_loaded(pins: Path) -> None:
    with pytest.raises(PlatformError, match="load the programs first"):
        HostPlane.open(pins / "nothing")


def test_ensure_bpffs_is_idempotent() -> None:
    loader.ensure_bpffs()
    mounts = Path("/proc/self/mounts").read_text()
    loader.ensure_bpffs()
    assert Path("/proc/self/mounts").read_text() == mounts
    assert subprocess.run(["stat", "-fc%t", loader.BPFFS], capture_output=True, check=True).stdout == b"cafe4a11\n"
