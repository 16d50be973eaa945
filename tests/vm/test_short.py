"""All programs load on a kernel, and some packets of each kind are treated as they should be: a short form."""

from __future__ import annotations

from dnatvm import images
from dnatvm.machine import Guest
from dnatvm.packets import run_tests

TRAFFIC = "(test_traffic and [offloads-routed and (tcp or ping or small or stopped))"
PACKETS = "test_host_packets or (test_router_packets and (tcp or checksum or test_an_offence_is_reported))"


def test_programs_load_and_pass_packets(guest: Guest, kernel_name: str) -> None:
    """Packet tests on the first kernel alone, as every compilation of the programs takes ten seconds or more."""
    files, some = ["traffic"], TRAFFIC
    if kernel_name == images.CHOSEN[0]:
        files, some = [*files, "host_packets", "router_packets"], f"{TRAFFIC} or {PACKETS}"
    run_tests(guest, *(f"tests/bpf/test_{name}.py" for name in files), "-k", some)
