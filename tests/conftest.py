"""A missing capability skips a test on a laptop, and says why; in CI a skipped test is a failed run."""

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


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and exitstatus == 0 and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("a test was skipped: in CI that is a failure", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
