"""``dnatctl lab``: up as often as one likes, down without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import Lab, eventually

from dnat.lab import builder, control
from dnat.lab.topology import Topology
from dnat.system import netns

PLACES = [
    Path(place)
    for place in ("/run/netns", "/run/dnat", "/run/dnat/bpf", "/run/dnat-lab", "/var/lib/dnat", "/etc/netns")
]


@pytest.fixture
def topology(prefix: str) -> Iterator[Topology]:
    yield Topology(prefix=prefix, phones=1)
    builder.destroy(prefix)


def _lab(topology: Topology, *argv: str, code: int = 0) -> str:
    command = [control.DNATCTL, "lab", argv[0], "--prefix", topology.prefix, *argv[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def _traces(prefix: str) -> list[Path]:
    places = [Path(place) for place in PLACES if Path(place).is_dir()]
    return [path for place in places for path in place.iterdir() if path.name.startswith(prefix)]


def test_a_lab_from_up_to_down(topology: Topology) -> None:
    said = _lab(topology, "up", "--phones", "1").splitlines()
    assert [line.split(":")[0] for line in said[1:]] == ["router", "phone1", "sip"], "a line for each node"
    assert all(": up: " in line for line in said[1:])
    assert _lab(topology, "status").count(" up ") == 4

    processes = netns.processes(topology.namespaces)
    said = _lab(topology, "up", "--phones", "1").splitlines()
    assert all(": already up: " in line for line in said), "twice is harmless"
    assert netns.processes(topology.namespaces) == processes

    lab = Lab(topology, {})
    lab["phone1"].kill()
    status = _lab(topology, "status", code=1)
    (line,) = (line for line in status.splitlines() if line.startswith("phone1"))
    assert "down" in line
    assert "phone1: up: " in _lab(topology, "up", "--phones", "1"), "and what has ended comes up again"
    _lab(topology, "status")

    # As if logged in there: the node's namespace, this installation's commands, the exit code of the program.
    said = _lab(topology, "exec", "phone1", "--", "sh", "-c", "echo $DNAT_NODE; ip -br addr show eth0; dnatctl status")
    assert said.startswith("phone1\n") and "10.66.0.11/24" in said and "up as host" in said
    _lab(topology, "exec", "phone1", "--", "sh", "-c", "exit 7", code=7)

    processes = netns.processes(topology.namespaces)
    # Not even a daemon that hangs is in the way.
    os.kill(lab["sip"].pid(), signal.SIGSTOP)
    assert _traces(topology.prefix) != []
    assert "removed 5 namespaces" in _lab(topology, "down")
    eventually(lambda: not [pid for pid in processes if Path(f"/proc/{pid}/cwd").exists()], "all processes have ended")
    assert _traces(topology.prefix) == []
    assert "no lab called" in _lab(topology, "down")


@pytest.mark.parametrize("command", ["down", "status", "exec", "demo"])
def test_what_is_no_name_of_a_lab_is_nowhere(command: str, tmp_path: Path) -> None:
    """A path for a name once had `lab down` remove what lay there."""
    kept = tmp_path / "kept"
    kept.write_text("kept")
    words = ("phone1", "--", "true") if command == "exec" else ()
    said = subprocess.run(
        [control.DNATCTL, "lab", command, "--prefix", str(tmp_path), *words],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=40,
    )  # fmt: skip
    assert said.returncode == 2 and "a lab cannot be called" in said.stderr
    assert kept.read_text() == "kept"


def test_a_lab_with_keys_whose_packets_go_by_xdp(topology: Topology) -> None:
    options = ("--phones", "1", "--authentication", "strict", "--xdp")
    assert "strict; routing lan to wan (XDP)" in _lab(topology, "up", *options)
    assert _lab(topology, "up", *options).count("already up") == 3, "nobody needs a key twice"
    lab = Lab(topology, {})
    lab["phone1"].run("curl", "-fsS", "--max-time", "20", f"http://{lab.ext}/")
    assert lab["router"].show()["router"]["path"] == "xdp"
