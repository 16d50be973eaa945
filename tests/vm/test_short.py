"""All programs load on a kernel, and some packets of each kind are treated as they should be: a short form."""

from __future__ import annotations

from dnatvm.machine import Guest
from dnatvm.packets import run_tests

FILES = [f"tests/bpf/test_{name}.py" for name in ("host_packets", "router_packets", "traffic")]
SOME = (
    "test_host_packets or (test_router_packets and (tcp or checksum or test_an_offence_is_reported))"
    " or (test_traffic and [offloads-routed and (tcp or ping or small or stopped))"
)


def test_programs_load_and_pass_packets(guest: Guest) -> None:
    run_tests(guest, *FILES, "-k", SOME, "--durations=8")
