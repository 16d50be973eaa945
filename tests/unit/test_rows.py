"""Sorting and filtering of `dnatctl show`."""

from __future__ import annotations

import pytest

from dnat.cli.rows import select
from dnat.errors import UsageError

DOCUMENT = {
    "leases": [
        {"first": 5060, "last": 5060, "protocol": "udp", "purpose": "explicit", "expires_in": 90, "host": "10.66.0.12"},
        {
            "first": 20000,
            "last": 20063,
            "protocol": "any",
            "purpose": "ephemeral",
            "expires_in": 30,
            "host": "10.66.0.11",
        },
    ],
    "counters": {"host_out_native": 7, "host_out_translated": 9, "drop_no_port": 0},
}


@pytest.mark.parametrize(
    ("filters", "sort", "firsts"),
    [
        ((), None, [5060, 20000]),
        (("protocol=udp",), None, [5060]),
        (("port=20017",), None, [20000]),
        (("port=1",), None, []),
        (("protocol=udp", "purpose=ephemeral"), None, []),
        ((), "expires_in", [20000, 5060]),
        ((), "-expires_in", [5060, 20000]),
        ((), "-port", [20000, 5060]),
    ],
)
def test_rows(filters: tuple[str, ...], sort: str | None, firsts: list[int]) -> None:
    assert [row["first"] for row in select(DOCUMENT, ("leases",), filters, sort)["leases"]] == firsts


def test_counters() -> None:
    assert list(select(DOCUMENT, ("counters",), ("reason=out",), "-packets")["counters"]) == [
        "host_out_translated",
        "host_out_native",
    ]


@pytest.mark.parametrize(("filters", "sort"), [(("protokol=udp",), None), (("udp",), None), ((), "age")])
def test_a_wrong_key_is_named(filters: tuple[str, ...], sort: str | None) -> None:
    with pytest.raises(UsageError, match=r"there are|write it as"):
        select(DOCUMENT, ("leases",), filters, sort)
