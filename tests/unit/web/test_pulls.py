"""A pull is in use from its commit on until its peer falls silent."""

from __future__ import annotations

import pytest

from millpond.core import limits
from millpond.web.pulls import Pulls


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def noted() -> list[str]:
    return []


def test_a_commit_is_noted_when_it_is_asked_for_and_as_long_as_its_peer_goes_on(noted: list[str]) -> None:
    time = Time()
    pulls = Pulls(noted.append, monotonic_seconds=time)
    pulls.begin("a", "c1")
    pulls.begin("a", "c1")
    assert noted == ["c1"]
    time.now += limits.USE_NOTED_SECONDS
    pulls.go_on("a")
    assert noted == ["c1", "c1"]
    pulls.go_on("a")  # a moment later: known
    pulls.go_on("b")  # somebody else
    assert noted == ["c1", "c1"]


def test_all_that_a_peer_is_pulling_is_kept_alive(noted: list[str]) -> None:
    time = Time()
    pulls = Pulls(noted.append, monotonic_seconds=time)
    pulls.begin("a", "c1")
    pulls.begin("a", "c2")
    noted.clear()
    time.now += limits.USE_NOTED_SECONDS
    pulls.go_on("a")
    assert sorted(noted) == ["c1", "c2"]


def test_a_pull_is_over_some_day_whatever_its_address_asks_for(noted: list[str]) -> None:
    time = Time()
    pulls = Pulls(noted.append, monotonic_seconds=time)
    pulls.begin("a", "old")
    time.now += limits.PULL_SECONDS + 1
    pulls.begin("a", "new")
    noted.clear()
    pulls.go_on("a")
    assert noted == ["new"]


def test_what_is_remembered_is_bounded(noted: list[str]) -> None:
    pulls = Pulls(noted.append, monotonic_seconds=Time())
    for number in range(limits.PULLING_PEERS + 1):
        pulls.begin(f"peer{number}", "c")
    for number in range(limits.PULLED_COMMITS + 1):
        pulls.begin("a", f"c{number}")
    noted.clear()
    pulls.go_on("peer0")
    assert noted == []
    pulls.go_on("a")
    assert noted == [f"c{number}" for number in range(1, limits.PULLED_COMMITS + 1)]
