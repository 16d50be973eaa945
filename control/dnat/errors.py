"""Errors say who is at fault; only the command line turns them into exit codes and advice.

Each error carries a sentence that a person can act on. Nothing below the command line prints.
"""

from __future__ import annotations

from typing import ClassVar


class DnatError(Exception):
    """Base of all errors that dnat raises on purpose."""

    exit_code: ClassVar[int] = 1
    """Exit code of ``dnatctl`` when this error ends a command."""


class UsageError(DnatError):
    """The caller asked for something that cannot be: a wrong option, name, number or configuration."""

    exit_code: ClassVar[int] = 2


class ConfigError(UsageError):
    """A configuration file does not hold; the message names file, key and allowed values."""


class AlreadyUpError(UsageError):
    """Another process is the daemon of this network namespace."""


class PeerError(DnatError):
    """The other side of PAP refused, broke the protocol or did not answer."""

    exit_code: ClassVar[int] = 3


class PlatformError(DnatError):
    """The kernel or the machine cannot do what is needed: no root, no BPF, no such interface, full disk."""

    exit_code: ClassVar[int] = 4


class NotRunningError(DnatError):
    """There is no daemon to talk to in this network namespace."""

    exit_code: ClassVar[int] = 5


class NotAnsweringError(NotRunningError):
    """There is a daemon in this network namespace, and it does not answer."""


def error_kind(error: DnatError) -> str:
    """Name of the nearest class above, by which another process can raise the like."""
    return next(base.__name__ for base in type(error).__mro__ if base.__module__ == __name__)
