"""What the local API is asked for and answers, in the words of the protocol core."""

from __future__ import annotations

import enum
from typing import Any, TypeVar

from dnat.daemon.clock import boottime
from dnat.errors import UsageError
from dnat.pap.messages import Want
from dnat.types import Lease, Parity, Protocol, Purpose

_Enum = TypeVar("_Enum", bound=enum.Enum)


def named(kind: type[_Enum], label: str) -> _Enum:
    """The member of an enumeration that has this label. Raises UsageError."""
    for member in kind:
        if member.name.lower() == label:
            return member
    raise UsageError(f"{label!r} is not one of {', '.join(member.name.lower() for member in kind)}")


def checked_port(number: int) -> int:
    """Raises UsageError for what is no port."""
    if type(number) is not int or not 1 <= number <= 65535:
        raise UsageError(f"{number} is no port; ports are 1 to 65535")
    return number


def explicit(count: int, first: int | None, protocol: str, parity: str, exact: bool, lifetime: int) -> Want:
    """Ports that a program will bind itself. Raises UsageError, ValueError."""
    if type(count) is not int or type(lifetime) is not int:
        raise UsageError("count and lifetime are whole numbers")
    return Want(
        count=count,
        protocol=named(Protocol, protocol),
        purpose=Purpose.EXPLICIT,
        parity=named(Parity, parity),
        exact=bool(exact),
        first=None if first is None else checked_port(first),
        lifetime=lifetime,
    )


def describe_lease(lease: Lease) -> dict[str, Any]:
    """A lease as the API shows it."""
    return {
        "id": f"{lease.id:016x}",
        "address": str(lease.address),
        "first": lease.ports.first,
        "last": lease.ports.last,
        "protocol": lease.protocol.label,
        "purpose": lease.purpose.label,
        "expires_in": max(0, round(lease.expires_at - boottime())),
    }
