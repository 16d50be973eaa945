"""Undoes what ``up`` did, from the journal alone: the same whether the daemon ended well or was killed."""

from __future__ import annotations

import contextlib
import shutil

from dnat.daemon import attachments, fast_path
from dnat.instance import Instance
from dnat.sip import process as sip_process
from dnat.system.journal import Journal
from dnat.system.undo import HANDLERS


def tear_down(instance: Instance, *, keep_log: bool = False) -> list[str]:
    """Restore the machine; the daemon must have ended. Returns what could not be restored, a sentence each.

    Leases in ``/var/lib/dnat`` stay: the next ``up`` gives and gets the same ports.
    """
    handlers = {**HANDLERS, **attachments.HANDLERS, **fast_path.HANDLERS, **sip_process.HANDLERS}
    problems = Journal(instance.journal).undo(handlers)
    if problems:
        return problems
    for role in ("host", "router"):
        shutil.rmtree(instance.pins(role), ignore_errors=True)
    with contextlib.suppress(OSError):
        instance.pins("host").parent.rmdir()
    for path in (instance.socket, instance.saved_leases, instance.mappings, instance.programs, instance.pid_file):
        path.unlink(missing_ok=True)
    if not keep_log:
        shutil.rmtree(instance.run, ignore_errors=True)
    return []
