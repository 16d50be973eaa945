"""All checks in the order in which one thing needs the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from dnat import config as configuration
from dnat.client import Client
from dnat.doctor import kernel, network, service, software
from dnat.doctor.findings import Check, Finding, Patient
from dnat.errors import ConfigError, DnatError, NotRunningError
from dnat.instance import Instance

CHECKS: Sequence[tuple[str, Check]] = (
    ("kernel", kernel.version),
    ("bcc", kernel.bcc),
    ("programs", kernel.programs),
    ("jit", kernel.jit),
    ("interfaces", network.interfaces),
    ("routes", network.routes),
    ("arp", network.arp),
    ("sysctls", network.sysctls),
    ("mtu", network.mtu),
    ("offloads", network.offloads),
    ("address", network.external_address),
    ("firewall", software.firewalls),
    ("containers", software.containers),
    ("manager", software.managers),
    ("server", service.server),
    ("daemon", service.daemon),
    ("ports", service.ports),
    ("pool", service.pool),
    ("clock", kernel.clock),
)


def examine(instance: Instance) -> Iterator[Finding]:
    """Every finding as it comes; an error of ours that stops checks is one, too, once."""
    path = instance.configuration()
    try:
        config = configuration.load(path)
    except ConfigError as error:
        yield Finding("configuration", "fail", str(error), "correct the file, or write a new one: sudo dnatctl init")
        return
    yield Finding("configuration", "ok", f"{path or 'none, so a host'} ({', '.join(config.roles)})")
    patient = Patient(config, instance, _shown(instance), os.geteuid() == 0)
    stopped: set[str] = set()
    for name, check in CHECKS:
        try:
            yield from check(patient)
        except DnatError as error:
            if str(error) not in stopped:
                yield Finding(name, "fail", str(error), "correct that first; what depends on it was not looked at")
            stopped.add(str(error))
        except OSError as error:
            yield Finding(name, "warn", f"could not be looked at: {error}", "run `sudo dnatctl doctor`")


def _shown(instance: Instance) -> dict[str, object] | None:
    try:
        with Client(instance.socket) as client:
            shown: dict[str, object] = client.call("show")
            return shown
    except NotRunningError:
        return None
