"""Failed transcripts show where they differ."""

import pytest

pytest.register_assert_rewrite("pap_link")
