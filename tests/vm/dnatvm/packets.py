"""The packet tests, run in a guest that ``tests/vm/conftest.py`` made."""

from __future__ import annotations

from dnatvm.machine import Guest

PYTHON = "/usr/lib/dnat/bin/python3"


def run_tests(guest: Guest, *arguments: str) -> None:
    """pytest in the guest; a skipped test fails there, too. Raises AssertionError with what it said."""
    command = f"cd /checkout && ulimit -n 65536 && exec {PYTHON} -m pytest -q -p no:cacheprovider --tb=short"
    said = guest.run("sh", "-c", f'{command} "$@"', "sh", *arguments, code=None, seconds=1500, CI="true")
    print(said.out[-300:])
    assert said.code == 0, said.out[-8000:] + said.err
