"""One thread for everything that changes the machine: netlink, sysctls, nftables, attachments, the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dnat.system.journal import Journal

_Result = TypeVar("_Result")


class Privileged:
    """Runs functions one after another, off the event loop, so that no two touch the journal at once."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="privileged")

    async def run(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        """Call ``function`` in the thread and wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        self._thread.shutdown()
