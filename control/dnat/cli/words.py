"""What users write on the command line: addresses, ports, leases. Every refusal says how to write it."""

from __future__ import annotations

import math
import re
from ipaddress import IPv4Address
from typing import Any

import click

from dnat.errors import UsageError
from dnat.types import PortRange

_IDENTIFIER = re.compile(r"[0-9a-fA-F]{16}")


def address(text: str) -> str:
    """An IPv4 address. Raises UsageError."""
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise UsageError(f'"{text}" is no IPv4 address; write it as 198.51.100.1') from None


def ports(text: str) -> PortRange:
    """A port or a range of ports. Raises UsageError."""
    try:
        return PortRange.parse(text)
    except ValueError:
        raise UsageError(f'"{text}" is neither a port nor a range of ports, as 5060 or 20000-20009') from None


def is_lease_identifier(text: str) -> bool:
    """Whether it is what `dnatctl show leases` calls a lease, and no port."""
    return _IDENTIFIER.fullmatch(text) is not None


class Seconds(click.FloatRange):
    """A number of seconds; neither endless nor none at all, which Python counts as numbers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return number
