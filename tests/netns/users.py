"""Being another user for a moment: what a local socket sees of who connects."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def user(uid: int, gid: int | None = None, groups: Sequence[int] = ()) -> Iterator[None]:
    """Connect as this user in the body; whoever is not root stays who it is."""
    if os.geteuid() != 0:
        yield
        return
    before = os.getgroups(), os.getegid()
    os.setgroups(list(groups))
    os.setegid(uid if gid is None else gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(before[1])
        os.setgroups(before[0])
