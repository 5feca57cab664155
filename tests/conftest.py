"""What holds for every test."""

import os

import pytest

from millpond.core import seldom


@pytest.fixture(autouse=True)
def _nothing_is_left_out_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test must see what it provokes, whatever an earlier one has provoked a moment ago."""
    monkeypatch.setattr(seldom, "REPEAT_SECONDS", 0.0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Who reads only the end of a run sees what it left out."""
    if excused := os.environ.get("MILLPOND_SKIP"):
        terminalreporter.line(f"excused by MILLPOND_SKIP: {excused}")
