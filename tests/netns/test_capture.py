"""``dnatctl capture`` beside a live exchange."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nodes import Lab, Node, eventually
from scapy.utils import rdpcap

from dnat.capture.pap_layer import PAP
from dnat.lab import control
from dnat.system import netns

ENDS = [signal.SIGINT, signal.SIGTERM]


@contextmanager
def _capturing(node: Node, output: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A capture on eth0 that sees packets already; what it says goes into the file."""
    argv = [control.DNATCTL, "capture", "-i", "eth0", *options]
    with output.open("wb") as file:
        process = netns.popen(argv, node.namespace, stdout=file, stderr=subprocess.PIPE)
    try:
        _until_it_sees(node, output)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _until_it_sees(node: Node, output: Path) -> None:
    def seen() -> bool:
        node.run("ping", "-c", "1", "-W", "15", "10.66.0.1")
        return "echo-request" in output.read_text()

    eventually(seen, "the capture shows a ping", seconds=15)


def _lines(output: Path, kind: str) -> list[str]:
    return [line for line in output.read_text().splitlines() if f"PAP {kind}" in line]


@pytest.mark.parametrize("end", ENDS, ids=["SIGINT", "SIGTERM"])
def test_an_exchange_line_by_line(routed_lab: Lab, tmp_path: Path, end: signal.Signals) -> None:
    phone, output, pcap = routed_lab["phone1"], tmp_path / "said", tmp_path / "pap.pcap"
    with _capturing(phone, output, "-w", str(pcap)) as process:
        lease = phone.request("--ports", "2", "--protocol", "udp")
        phone.dnatctl("release", lease["id"])
        eventually(lambda: _lines(output, "ACK"), "the ACK is shown")
        process.send_signal(end)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    ports = f"{routed_lab.external}:{lease['first']}-{lease['last']}"
    (request,), (response,) = _lines(output, "REQUEST"), _lines(output, "RESPONSE")
    (release,), (ack,) = _lines(output, "RELEASE"), _lines(output, "ACK")
    assert f"{phone.address}:5728 → 10.66.0.1:5727" in request and "wants 2 ports, udp explicit" in request
    assert f"10.66.0.1:5727 → {phone.address}:5728" in response and "SUCCESS" in response
    assert f"{ports} udp explicit" in response
    assert ports in release
    assert "SUCCESS" in ack
    messages = [packet[PAP].type for packet in rdpcap(str(pcap)) if PAP in packet]
    assert messages == [0, 1, 3, 8], "the file has it all, to its end"
    again = phone.dnatctl("capture", "-r", str(pcap)).stdout
    assert [line.split("  ", 1)[1] for line in again.splitlines() if "PAP" in line] == [
        line.split("  ", 1)[1] for line in (request, response, release, ack)
    ]


def test_enough_is_enough(routed_lab: Lab, tmp_path: Path) -> None:
    phone, output = routed_lab["phone1"], tmp_path / "said"
    with _capturing(phone, output, "--count", "6") as process:
        phone.run("ping", "-c", "6", "-i", "0.05", "10.66.0.1")
        assert process.wait(10) == 0
    assert len(output.read_text().splitlines()) == 6
    phone.dnatctl("capture", "-i", "eth0", "--seconds", "0.2")


def test_its_reader_goes_away(routed_lab: Lab) -> None:
    """``dnatctl capture | head -1`` ends with head."""
    phone = routed_lab["phone1"]
    read_end, write_end = os.pipe()
    process = netns.popen([control.DNATCTL, "capture", "-i", "eth0"], phone.namespace, stdout=write_end, stderr=-1)
    os.close(write_end)
    os.set_blocking(read_end, False)

    def heard() -> bool:
        phone.run("ping", "-c", "1", "10.66.0.1")
        try:
            return bool(os.read(read_end, 100))
        except BlockingIOError:
            return False

    eventually(heard, "the capture says something", seconds=15)
    os.close(read_end)
    phone.run("ping", "-c", "2", "-i", "0.1", "10.66.0.1")
    with process:
        assert process.wait(10) == 141
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


def test_what_cannot_be_captured(namespace: Callable[[str], str], tmp_path: Path) -> None:
    name = namespace("nobody")
    (tmp_path / "text").write_text("this is no capture")
    for argv, code, expected in (
        (("-i", "wlan9"), 4, "lo"),
        ((), 2, "-i eth0"),
        (("-i", "lo", "-r", "x.pcap"), 2, "-i eth0"),
        (("-r", str(tmp_path / "text")), 2, "no capture file"),
        (("-r", str(tmp_path / "nothing")), 2, "nothing"),
        (("-i", "lo", "--seconds", "0.1", "-w", "/proc/nowhere/x.pcap"), 4, "/proc/nowhere"),
    ):
        done = netns.run([control.DNATCTL, "capture", *argv], name, capture_output=True, text=True, timeout=20)
        assert done.returncode == code, (argv, done.stderr)
        assert expected in done.stderr
        assert "Traceback" not in done.stderr and "internal error" not in done.stderr
