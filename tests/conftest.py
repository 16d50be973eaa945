"""What holds for all tests.

A missing capability skips a test on a laptop, and says why; in CI a skipped test is a failed run.
"""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# A busy machine makes the generation of messages slow, which says nothing about dnat.
settings.register_profile("dnat", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dnat")

# Whoever starts tests in the background may have SIGINT ignored, and so would every program that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

MOST_TRIED_AGAIN = 3
"""Tests of one run that may pass at the second try only."""


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or exitstatus != 0:
        return
    wrong = []
    if os.environ.get("CI") and reporter.stats.get("skipped"):
        wrong.append("a test was skipped: in CI that is a failure")
    if len(reporter.stats.get("rerun", ())) > MOST_TRIED_AGAIN:
        wrong.append(f"more than {MOST_TRIED_AGAIN} tests had to be tried again: that is no chance")
    for line in wrong:
        reporter.write_line(line, red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
