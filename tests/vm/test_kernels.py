"""All programs compile without kernel headers, load and treat packets as they should on kernels of several ages."""

from __future__ import annotations

from dnatvm.machine import Guest
from dnatvm.packets import PYTHON, run_tests

LOAD = """
from pathlib import Path
from dnat.dataplane import loader, objects
loader.ensure_bpffs()
for role in ("host", "router"):
    pins = loader.BPFFS / f"load-{role}"
    assert loader.ensure_loaded(role, pins)
    names = sorted(path.name for path in loader.program_pin(pins, "x").parent.iterdir())
    assert names == sorted((*objects.PROGRAMS[role], *objects.XDP_PROGRAMS[role])), names
    print(role, *names)
"""
PACKETS = [f"tests/bpf/test_{name}.py" for name in ("host_packets", "router_packets")]
PACKETS += [f"tests/bpf/test_{name}.py" for name in ("router_xdp", "host_pool", "host_policy")]
TRAFFIC = ["tests/bpf/test_traffic.py", "tests/bpf/test_sctp.py", "-k", "[offloads-routed or [vlan-routed"]


def test_all_programs_load(guest: Guest) -> None:
    said = guest.run(PYTHON, "-c", LOAD, seconds=600).out
    print(said)
    assert "router_wan_xdp" in said


def test_packets(guest: Guest) -> None:
    """The packet tests that are about the programs; those that time something are for real machines."""
    run_tests(guest, *PACKETS)


def test_traffic(guest: Guest) -> None:
    """Real sockets in namespaces of the guest, through host and router programs; also of SCTP, and over VLANs."""
    guest.run("modprobe", "--all", "8021q", "sctp")
    run_tests(guest, *TRAFFIC)
