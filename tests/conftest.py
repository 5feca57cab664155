"""What holds for every test, and which tests may run side by side."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

from millpond.core import seldom

ONE_AFTER_ANOTHER = ("tests/faults/", "tests/system/")
"""Tests with processes of their own, which want the machine for themselves as far as they can have it."""
BESIDE_THEM = tuple(f"tests/system/test_{what}" for what in ("import", "old_", "ostree_", "recipes"))
"""Those among them that only ask whether clients and stores of other generations get along, however long that takes."""
WAITING = "tests/system/test_slow_clients.py"
"""Tests that wait for minutes and do next to nothing meanwhile."""


@pytest.fixture(autouse=True)
def _nothing_is_left_out_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test must see what it provokes, whatever an earlier one has provoked a moment ago."""
    monkeypatch.setattr(seldom, "REPEAT_SECONDS", 0.0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n 3``: one process does all of those, one after another; one waits; and one does the rest, file by file."""
    from xdist.scheduler import LoadScopeScheduling  # only there where somebody asked for it

    slow, waiting = "one after another", "waiting"

    class Lanes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(WAITING):
                return waiting
            alone = nodeid.startswith(ONE_AFTER_ANOTHER) and not nodeid.startswith(BESIDE_THEM)
            return slow if alone else nodeid.partition("::")[0]

        def _assign_work_unit(self, node: Any) -> None:
            for first in (waiting, slow):  # they take longest
                if first in self.workqueue:
                    self.workqueue.move_to_end(first, last=False)
            super()._assign_work_unit(node)
            if waiting in self.assigned_work[node] and len(self.nodes) > 2:
                node.shutdown()  # after this; the rest is for the two others

    return Lanes(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Who reads only the end of a run sees what it left out, and what was tried again (``hung``: system/conftest.py)."""
    ends = (report for reports in terminalreporter.stats.values() for report in reports)
    properties = (
        told for report in ends if getattr(report, "when", "") == "teardown" for told in report.user_properties
    )
    for release, times in sorted(Counter(value for name, value in properties if name == "hung").items()):
        terminalreporter.line(f"bst {release} hung by a race of its own, and was ended and tried again: {times} times")
    if excused := os.environ.get("MILLPOND_SKIP"):
        terminalreporter.line(f"excused by MILLPOND_SKIP: {excused}")
