"""A duty that failed for want of room is tried again at once when there was something to give up."""

from pathlib import Path

from millpond.core.errors import NoSpace
from millpond.services.upkeep import Upkeep
from millpond.store.repository.layout import Layout


class Failing:
    """Fails so many times."""

    name = "failing"

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.runs = 0

    def run(self) -> float:
        self.runs += 1
        if self.failures:
            raise self.failures.pop()
        return 100.0


def test_what_failed_on_a_full_disk_is_tried_again_at_once_as_long_as_something_is_given_up(tmp_path: Path) -> None:
    for failure in (NoSpace("the disk is full"), OSError("the disk is full")):
        duty, given_up = Failing([failure] * 3), [False, True, True]
        upkeep = Upkeep(Layout(str(tmp_path)), [duty], relieve=lambda _, left=given_up: left.pop())
        assert [upkeep.round() for _ in range(2)] == [0.0, 0.0]
        assert upkeep.round() > 0  # nothing was left to give up
        assert duty.runs == 3
        assert upkeep.round() > 0
        assert duty.runs == 3
