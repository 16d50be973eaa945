"""Which handler undoes which kind of journal entry.

The daemon adds the kinds that it knows and this package does not: ``journal.undo({**HANDLERS, "attachment":
…})``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from dnat.errors import PlatformError
from dnat.system import guests, host, nft, routes, sysctl
from dnat.system.journal import Entry, Handler
from dnat.system.paths import RUN_DIRECTORY

PATH_KIND = "path"
"""A file or directory below /run/dnat that goes away; the subject is its path."""


def undo_path(entry: Entry) -> None:
    """Remove a file or a whole directory (pins in a bpffs, too)."""
    path = Path(entry.subject)
    if RUN_DIRECTORY not in path.parents or ".." in path.parts:
        raise PlatformError(f"it is not below {RUN_DIRECTORY}")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


HANDLERS: Mapping[str, Handler] = {
    sysctl.KIND: sysctl.undo,
    host.ADDRESS_KIND: host.undo_address,
    routes.KIND: routes.undo,
    routes.LOCAL_KIND: routes.undo_local,
    nft.KIND: nft.undo,
    guests.KIND: guests.undo,
    PATH_KIND: undo_path,
}
