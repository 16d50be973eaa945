"""Failed transcripts show where they differ."""

import pytest

pytest.register_assert_rewrite("pap_link")

from pap_link import Network  # noqa: E402


@pytest.fixture
def net() -> Network:
    """A server and no host yet, without authentication."""
    return Network()
