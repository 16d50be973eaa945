"""The C headers and their mirror in Python agree, and disagreement does not compile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dnat.dataplane import abi, compile, loader
from dnat.errors import PlatformError

HEADER = compile.SOURCES / "include" / "dnat" / "abi.h"


def members(enum: str) -> dict[str, int]:
    (body,) = re.findall(rf"^enum {enum} {{(.*?)^}};", HEADER.read_text(), re.MULTILINE | re.DOTALL)
    return {name: int(number) for name, number in re.findall(r"^\t(\w+) = (\d+),", body, re.MULTILINE)}


def test_every_counter_has_a_name() -> None:
    assert members("counter") == {counter.name: counter.value for counter in abi.Counter}


def test_every_counter_belongs_to_a_role() -> None:
    assert set(abi.counters_of("host")) | set(abi.counters_of("router")) == set(abi.Counter)


def test_every_constant_is_mirrored() -> None:
    names = set(re.findall(r"^#define (\w+) ", HEADER.read_text(), re.MULTILINE))
    assert names == set(abi._CONSTANTS) - {"PORT_WORDS"}


def test_every_structure_is_mirrored() -> None:
    names = set(re.findall(r"^struct (\w+) {", HEADER.read_text(), re.MULTILINE))
    assert names == set(abi._STRUCTURES)


@pytest.mark.parametrize(
    "claim",
    ["sizeof(struct binding) == 25", "DROP_NO_OWNER == 9", "__builtin_offsetof(struct owner, host) == 2"],
)
def test_a_mirror_that_differs_does_not_compile(host_pins: Path, tmp_path: Path, claim: str) -> None:
    maps = loader.maps_directory(host_pins)
    with pytest.raises(PlatformError, match="compile"):
        compile.compile_role("host", maps, tmp_path, extra=f'_Static_assert({claim}, "mirror");')
