"""What a client of the local API gives a method: names and types are those of the method's own signature."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from dnat.errors import UsageError

_NEEDED = inspect.Parameter.empty


def checked(method: Callable[..., Any], given: Mapping[str, Any], besides: int = 0) -> dict[str, Any]:
    """The parameters, each of the type that the method says. Raises UsageError.

    ``besides``: how many of the method's first parameters are not the client's to give.
    """
    taken = _taken(getattr(method, "__func__", method), besides + inspect.ismethod(method))
    if unknown := [name for name in given if name not in taken]:
        raise UsageError(f"wrong parameters: {unknown[0]!r} is not one of {', '.join(taken) or 'none'}")
    if missing := [name for name, (_, default) in taken.items() if default is _NEEDED and name not in given]:
        raise UsageError(f"wrong parameters: {missing[0]!r} is missing")
    values = {}
    for name, value in given.items():
        try:
            values[name] = msgspec.convert(value, taken[name][0])
        except msgspec.ValidationError as error:
            raise UsageError(f"wrong parameters: {name!r}: {error}") from None
    return values


@functools.cache
def _taken(function: Callable[..., Any], besides: int) -> dict[str, tuple[Any, Any]]:
    """Type and default of each parameter that a client may give."""
    hints = typing.get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())[besides:]
    return {each.name: (hints[each.name], each.default) for each in parameters}
