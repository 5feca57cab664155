"""What holds for every test."""

import pytest

from millpond.core import seldom


@pytest.fixture(autouse=True)
def _nothing_is_left_out_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test must see what it provokes, whatever an earlier one has provoked a moment ago."""
    monkeypatch.setattr(seldom, "REPEAT_SECONDS", 0.0)
