"""A pull is in use from its commit on until its peer falls silent."""

from __future__ import annotations

import pytest

from millpond.core import limits
from millpond.web.messages import Peer
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
    peer = Peer("a")
    pulls.begin(peer, "c1")
    pulls.begin(peer, "c1")
    assert noted == ["c1"]
    time.now += limits.USE_NOTED_SECONDS
    pulls.go_on(Peer("a"))  # by another connection
    assert noted == ["c1", "c1"]
    pulls.go_on(peer)  # a moment later: known
    pulls.go_on(Peer("b"))  # somebody else
    assert noted == ["c1", "c1"]


def test_all_that_a_peer_is_pulling_is_kept_alive(noted: list[str]) -> None:
    time = Time()
    pulls = Pulls(noted.append, monotonic_seconds=time)
    for commit in ("c1", "c2"):
        pulls.begin(Peer("a"), commit)
    noted.clear()
    time.now += 100 * limits.PULL_SECONDS
    pulls.go_on(Peer("a"))
    assert sorted(noted) == ["c1", "c2"]


def test_a_pull_is_over_when_its_peer_leaves(noted: list[str]) -> None:
    pulls = Pulls(noted.append, monotonic_seconds=Time())
    first, second = Peer("a"), Peer("a")
    pulls.begin(first, "c1")
    pulls.begin(second, "c2")
    noted.clear()
    first.left = True
    pulls.go_on(second)
    assert noted == ["c2"]


def test_what_came_by_a_connection_that_a_proxy_closed_is_kept_alive_for_a_while(noted: list[str]) -> None:
    time = Time()
    pulls = Pulls(noted.append, monotonic_seconds=time)
    pulls.begin(Peer("proxy", connected=False), "c1")
    noted.clear()
    time.now += limits.PULL_SECONDS
    pulls.go_on(Peer("proxy"))
    assert noted == ["c1"]
    time.now += limits.USE_NOTED_SECONDS
    pulls.go_on(Peer("proxy"))
    assert noted == ["c1"]


def test_what_is_remembered_is_bounded(noted: list[str]) -> None:
    pulls = Pulls(noted.append, monotonic_seconds=Time())
    peer = Peer("a")
    for number in range(limits.PULLING_PEERS + 1):
        pulls.begin(Peer(f"peer{number}"), "c")
    for number in range(limits.PULLED_COMMITS + 1):
        pulls.begin(peer, f"c{number}")
    noted.clear()
    pulls.go_on(Peer("peer0"))
    assert noted == []
    pulls.go_on(peer)
    assert sorted(noted) == sorted(f"c{number}" for number in range(1, limits.PULLED_COMMITS + 1))
