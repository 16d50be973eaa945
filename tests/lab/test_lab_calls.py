"""Real phones call each other through a lab."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from places import Place

from dnat.lab.topology import EXT

SCRIPT = (Path(__file__).parent / "call.py").read_text()
TONES = {"phone1": 440, "phone2": 660, "ext": 880}
LEAST = 1.0
"""Seconds of the other's tone that must be heard, of three: nothing is said about losses on an emulated machine."""


def card(place: Place, node: str) -> str:
    """The network card towards the lab."""
    return str(json.loads(place.run(node, "ip", "-j", "route", "get", str(place.topology.external)).out)[0]["dev"])


def phone(place: Place, node: str, other: str, directory: str, uri: tuple[str, ...] = ()) -> dict[str, Any]:
    """One end of a call."""
    if node == "ext":
        numbers, where = (5060, 40000, 40015), (str(EXT), card(place, node))
    else:
        lease = json.loads(
            place.run(node, "dnatctl", "request", "--ports", "10", "--parity", "even", "-o", "json").out
        )["lease"]
        # SIP's UDP and TCP port, TLS, and the others for RTP.
        numbers, where = (lease["first"], lease["first"] + 2, lease["last"]), (str(place.topology.external), "lo")
    arguments = [directory, node, *where, *map(str, numbers), str(TONES[node]), str(TONES[other]), *uri]
    try:
        said = place.run(node, place.python, "-", *arguments, data=SCRIPT, seconds=6 * place.seconds)
        result: dict[str, Any] = json.loads(said.out)
        return result
    finally:
        place.run(node, "rm", "-rf", directory)
        if node != "ext":
            place.run(node, "dnatctl", "release", str(numbers[0]))


@pytest.mark.parametrize(
    ("caller", "callee"),
    [("phone1", "ext"), ("ext", "phone1"), pytest.param("phone1", "phone2", marks=pytest.mark.phones(2))],
)
def test_call(place: Place, caller: str, callee: str) -> None:
    directory = f"/tmp/dnat-call-{caller}-{callee}"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(phone, place, callee, caller, directory)
        place.eventually(callee, "test", "-e", f"{directory}/ready", what="the phone can be called")
        config = place.run(callee, "cat", f"{directory}/accounts").out
        uri = config.partition("<")[2].partition(">")[0]
        heard = phone(place, caller, callee, f"{directory}-caller", (uri,))
        assert heard["seconds"] >= LEAST, heard
        assert waiting.result()["seconds"] >= LEAST
