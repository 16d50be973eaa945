"""The daemon needs no more capabilities than its systemd unit leaves it; a host does without CAP_SYS_ADMIN."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from nodes import Lab, eventually

from dnat.lab.control import DNATCTL
from dnat.system import netns

UNIT = (Path(__file__).parents[2] / "packaging/systemd/dnat.service").read_text()


@pytest.mark.parametrize(("name", "without"), [("phone1", "CAP_SYS_ADMIN"), ("router", "")])
def test_up_and_traffic_with_the_units_capabilities(routed_lab: Lab, name: str, without: str) -> None:
    node = routed_lab[name]
    node.dnatctl("down")
    (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT, re.MULTILINE)
    kept = ",".join(f"+{word.removeprefix('CAP_').lower()}" for word in line.split() if word != without)
    command = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{kept}", "--inh-caps=-all"]
    with netns.enter(node.namespace):
        daemon = subprocess.Popen(
            [*command, DNATCTL, "up", "--foreground"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    try:
        up = eventually(
            lambda: node.dnatctl("status", code=None).returncode == 0 or daemon.poll() is not None, "it is up", 60
        )
        assert up and daemon.poll() is None, daemon.communicate()[0]
        phone = routed_lab["phone1"]
        said = eventually(
            lambda: phone.run("curl", "-sS", "-m", "3", f"http://{routed_lab.ext}/", code=None).stdout, "traffic", 30
        )
        assert said.startswith(routed_lab.external)
    finally:
        daemon.terminate()
        daemon.communicate(timeout=20)
        node.dnatctl("up")
