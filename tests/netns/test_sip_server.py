"""The sip role with real phones: registration, calls through proxy and redirect server, and who is turned away."""

from __future__ import annotations

import json
from pathlib import Path

from nodes import Lab
from sip_phones import SipPhone, converse


def registrations(lab: Lab) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(lab["sip"].dnatctl("sip", "registrations", "-o", "json").stdout)
    return found


def test_an_outside_phone_reaches_a_phone_through_the_proxy(sip_lab: Lab, tmp_path: Path) -> None:
    with (
        SipPhone(sip_lab["phone1"], tmp_path / "alice", 440).provision("alice") as alice,
        SipPhone(sip_lab["ext"], tmp_path / "ext", 880).outside() as ext,
    ):
        alice.registered()
        assert f"@{sip_lab.external}:{alice.ports.first}" in registrations(sip_lab)[0]["contact"]
        converse(ext, alice, f"sip:alice@{sip_lab.external}")
