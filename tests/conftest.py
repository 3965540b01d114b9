"""What all tests share: where a skip is a failure, it is one."""

import os

import pytest
from hypothesis import settings

# Threads that spin as they wait cost several times their work on shared cores; torch reads this
# when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The first call of a compiled loop waits for the compiler: no test is timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped and os.environ.get("RECLORA_SKIPS_FAIL") == "1":
        print("\nskipped, though RECLORA_SKIPS_FAIL=1 says that nothing is missing:", *_skipped)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
