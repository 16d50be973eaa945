"""A host's packets are clones of what TCP keeps for sending again. The kernel unshares each before a program that
writes in place, also where the program would not.
"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import pytest

from dnat.dataplane import objects
from dnat.dataplane.bpf import Command, bpf, object_get
from dnat.dataplane.loader import program_pin

UNSHARING = (0x71, 0x54, 0x15)
"""How a program begins then: load an octet of the packet's description, mask it, go on if that is zero."""


def first_opcodes(pin: Path) -> tuple[int, ...]:
    """Of a program as the kernel runs it."""
    instructions = ctypes.create_string_buffer(8 * len(UNSHARING))
    info = ctypes.create_string_buffer(128)
    # struct bpf_prog_info: type, id, tag; octets of machine code and of instructions; where they are to go.
    struct.pack_into("=2I8s2I2Q", info, 0, 0, 0, b"", 0, len(instructions), 0, ctypes.addressof(instructions))
    bpf(Command.OBJ_GET_INFO_BY_FD, "IIQ", object_get(pin), len(info), ctypes.addressof(info))
    return tuple(instructions.raw[::8])


@pytest.mark.parametrize("program", objects.PROGRAMS["host"])
def test_the_kernel_unshares_nothing_before_a_hosts_programs(host_pins: Path, program: str) -> None:
    assert first_opcodes(program_pin(host_pins, program)) != UNSHARING


def test_a_router_writes_in_place(router_pins: Path) -> None:
    """What it forwards is seldom a clone. And this is how the other test would see it."""
    assert first_opcodes(program_pin(router_pins, "router_wan")) == UNSHARING
