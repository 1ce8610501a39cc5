"""A pytest plugin: a skipped test is a failure, unless ``allowed_skips.txt`` allows it.

Loaded by ``scripts/test.sh`` with ``-p tests.skips``; plain ``pytest`` is lenient.
Each line of the list is a pattern of test ids and, after spaces, a pattern of
the reason that the test gives for its skip; ``#`` begins a comment line.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.txt")


def read_allowed(path: Path) -> list[tuple[str, str]]:
    """Pairs of patterns: test id, reason."""
    pairs = []
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            test, _, reason = line.strip().partition(" ")
            pairs.append((test, reason.strip()))
    return pairs


class _Skips:
    """Collects the skips of a run; turns those that are not allowed into its failure."""

    def __init__(self, allowed: list[tuple[str, str]]) -> None:
        self.allowed = allowed
        self.refused: list[tuple[str, str]] = []

    def _note(self, nodeid: str, longrepr: object) -> None:
        # (file, line, "Skipped: reason"), see _pytest.reports
        reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(fnmatchcase(nodeid, t) and fnmatchcase(reason, r) for t, r in self.allowed):
            self.refused.append((nodeid, reason))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report.nodeid, report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report.nodeid, report.longrepr)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.refused:
            terminalreporter.section("skips that are not allowed", red=True)
            for nodeid, reason in self.refused:
                terminalreporter.line(f"{nodeid}: {reason}")
            terminalreporter.line(f"If it must be so, say why in {ALLOWED.name}.")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Skips(read_allowed(ALLOWED)))
