"""Waiting for what should come to pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

SECONDS = 30.0


async def eventually(check: Callable[[], Any], what: str) -> None:
    """Wait until something holds."""
    deadline = asyncio.get_running_loop().time() + SECONDS
    while not check():
        assert asyncio.get_running_loop().time() < deadline, f"it did not come to pass: {what}"
        await asyncio.sleep(0.01)
