"""Measuring streams: loss, order, repeats, wrapping numbers and jitter."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnat.capture.rtp import Endpoint, RtpMeter, RtpStream, is_rtp

A, B = Endpoint(IPv4Address("198.51.100.1"), 20002), Endpoint(IPv4Address("203.0.113.2"), 40000)


def rtp(sequence: int, timestamp: int = 0, payload: bytes = b"", payload_type: int = 0) -> bytes:
    return bytes([0x80, payload_type]) + (sequence & 0xFFFF).to_bytes(2) + timestamp.to_bytes(4) + bytes(4) + payload


def measure(sequences: list[int], times: list[float] | None = None) -> RtpStream:
    meter = RtpMeter(A, B, 0, {}, False)
    for index, sequence in enumerate(sequences):
        at = times[index] if times else 0.02 * index
        meter.add(at, rtp(sequence, (160 * sequence) % 2**32))
    return meter.stream()


@pytest.mark.parametrize(
    ("sequences", "packets", "lost", "reordered", "duplicates"),
    [
        ([5], 1, 0, 0, 0),
        ([5, 6, 7], 3, 0, 0, 0),
        ([5, 7, 9], 3, 2, 0, 0),
        ([5, 7, 6], 3, 0, 1, 0),
        ([5, 5, 6], 2, 0, 0, 1),
        ([65534, 65535, 0, 1], 4, 0, 0, 0),
        ([65534, 1], 2, 2, 0, 0),
        ([0, 65535, 1], 3, 0, 1, 0),
        ([7, 6, 5], 3, 0, 2, 0),
    ],
)
def test_counts(sequences: list[int], packets: int, lost: int, reordered: int, duplicates: int) -> None:
    stream = measure(sequences)
    assert (stream.packets, stream.lost, stream.reordered, stream.duplicates) == (
        packets,
        lost,
        reordered,
        duplicates,
    )


def test_evenly_spaced_packets_have_no_jitter() -> None:
    assert measure(list(range(200))).jitter == pytest.approx(0, abs=1e-9)


def test_jitter_follows_rfc_3550() -> None:
    # One packet is 16 ms late: |D| is 16 ms twice, and each moves the estimate by 1/16 of the difference.
    times = [0.0, 0.02, 0.056, 0.06]
    after_first = 0.016 / 16
    expected = after_first + (0.016 - after_first) / 16
    assert measure([0, 1, 2, 3], times).jitter == pytest.approx(expected)


@given(
    start=st.integers(0, 65535),
    kept=st.lists(st.booleans(), min_size=2, max_size=300),
    shuffle=st.randoms(use_true_random=False),
)
def test_loss_does_not_depend_on_order(start: int, kept: list[bool], shuffle: object) -> None:
    numbers = [start + index for index, keep in enumerate(kept) if keep] or [start]
    expected = numbers[-1] - numbers[0] + 1 - len(numbers)
    shuffle.shuffle(numbers)  # type: ignore[attr-defined]
    stream = measure([number & 0xFFFF for number in numbers])
    assert (stream.packets, stream.lost) == (len(numbers), expected)


def test_short_streams_are_not_judged() -> None:
    assert measure([1, 2]).looks_encrypted is None


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (rtp(1), True),
        (rtp(1)[:11], False),
        (rtp(1, payload_type=0x80 | 72), False),  # RTCP sender report, type 200
        (b"\x00" * 12, False),
        (b"", False),
    ],
)
def test_rtp_is_told_from_rtcp_and_the_rest(payload: bytes, expected: bool) -> None:
    assert is_rtp(payload) is expected
