"""Fixtures of the capture tests."""

from __future__ import annotations

import pytest
from sip_scene import Scene


@pytest.fixture
def scene() -> Scene:
    return Scene()
