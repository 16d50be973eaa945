"""The parts of pyroute2 that dnat uses, without the rest of it.

The package pyroute2 imports all of itself (a database, Plan 9, wireless…), which costs every daemon 6 MB.
Its modules need no more than that a package of that name is there.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_NAME = "pyroute2"


@contextmanager
def _empty_package() -> Iterator[None]:
    """Modules of pyroute2 imported meanwhile do not import its ``__init__``; who imports it later gets the whole."""
    if _NAME in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(_NAME)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named '{_NAME}'", name=_NAME)
    package = ModuleType(_NAME)
    package.__path__ = spec.submodule_search_locations
    sys.modules[_NAME] = package
    try:
        yield
    finally:
        del sys.modules[_NAME]


with _empty_package():
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink import genlmsg
    from pyroute2.netlink.diag import DiagSocket
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.generic import GenericNetlinkSocket

__all__ = ["DiagSocket", "GenericNetlinkSocket", "IPRoute", "NetlinkError", "genlmsg"]
