"""A log that is not flooded."""

import logging

import pytest

from millpond.core import seldom as module
from millpond.core.seldom import Seldom

REPEAT_SECONDS = 10.0


def test_each_kind_is_said_at_once_and_then_seldom(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPEAT_SECONDS", REPEAT_SECONDS)
    now = 0.0
    seldom = Seldom(logging.getLogger("test"), monotonic=lambda: now)
    for i in range(100):
        seldom.say(logging.WARNING, "disk", f"the disk is full {i}")
        seldom.say(logging.ERROR, "net", f"the net is down {i}")
    assert caplog.messages == ["the disk is full 0", "the net is down 0"]
    now = REPEAT_SECONDS
    seldom.say(logging.WARNING, "disk", "the disk is full again")
    seldom.say(logging.WARNING, "disk", "the disk is full still")
    assert caplog.messages[2:] == ["the disk is full again (and 99 times more of late)"]
    now = 2 * REPEAT_SECONDS
    seldom.say(logging.WARNING, "disk", "and again")
    assert caplog.messages[3:] == ["and again (and 1 times more of late)"]
