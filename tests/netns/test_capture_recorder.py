"""Recording an interface: nothing between start and stop is missing."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dnat.capture import sniff
from dnat.capture.frames import read_packets
from dnat.capture.recorder import Recorder
from dnat.errors import PlatformError
from dnat.system import netns

HERE = IPv4Address("127.0.0.1")


@pytest.fixture
def place(namespace: Callable[[str], str]) -> str:
    return namespace("recorder")


def send(place: str, payloads: list[bytes]) -> None:
    with netns.enter(place), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for payload in payloads:
            sender.sendto(payload, (str(HERE), 9))


def test_first_and_last_packet_are_in_the_file(place: str, tmp_path: Path) -> None:
    payloads = [b"packet %d" % number for number in range(500)]
    with Recorder(place, "lo", tmp_path / "lo.pcap") as recorder:
        send(place, payloads)
    found = [packet.payload for packet in read_packets(recorder.path) if packet.destination_port == 9]
    assert recorder.dropped == 0
    assert found == payloads


def test_a_capture_that_died_is_reported(place: str, tmp_path: Path) -> None:
    recorder = Recorder(place, "lo", tmp_path / "lo.pcap")
    recorder.start()
    (tcpdump,) = netns.processes([place])
    os.kill(tcpdump, signal.SIGKILL)
    with pytest.raises(PlatformError, match="not complete"):
        recorder.stop()


def test_an_interface_that_is_not_there_is_named(place: str, tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match=f"eth7 in {place}"):
        Recorder(place, "eth7", tmp_path / "x.pcap").start()


def test_messages_are_said_as_they_pass(place: str, tmp_path: Path) -> None:
    said: list[str] = []
    messages = [b"BYE sip:a@h SIP/2.0\r\n", b"\x80\x00 not worth a line"]
    sender = threading.Thread(target=send, args=(place, messages))
    with netns.enter(place):
        dropped = sniff.watch("lo", said.append, pcap=tmp_path / "lo.pcap", seconds=5, count=1, ready=sender.start)
    sender.join()
    assert dropped == 0
    assert len(said) == 1 and said[0].endswith("SIP BYE sip:a@h")
    assert {packet.payload for packet in read_packets(tmp_path / "lo.pcap")} >= set(messages)


def test_watching_an_interface_that_is_not_there_lists_those_that_are(place: str) -> None:
    with (
        netns.enter(place),
        pytest.raises(PlatformError, match="no interface called eth7; there are: lo"),
    ):
        sniff.watch("eth7", print)
