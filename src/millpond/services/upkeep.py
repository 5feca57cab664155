"""The rounds of upkeep: what must be done for a repository while nobody asks for it.

One process per repository is its *upkeeper*: it holds ``upkeeper.lock`` for as long as it lives, and those of other
servers wait for their turn to become it (I10). It works in rounds, and holds ``upkeep.lock`` during each, so that a
command that needs quiet (``millpond evict``) takes that lock between two rounds and needs no word with anybody.

The rule: what is done here is done in small steps, each of which may be the last; a successor goes on. A duty that
fails is told in one line, comes again later, and holds up no other.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from millpond.core.errors import MillpondError
from millpond.disk import locks
from millpond.store.repository.layout import Layout

log = logging.getLogger(__name__)
_NEXT_TRY_SECONDS = 1.0
_AFTER_FAILURE_SECONDS = 5.0
_LOCK_STEP_SECONDS = 0.02
_LONGEST_NAP_SECONDS = 5.0


class Duty(Protocol):
    """Something that upkeep does again and again."""

    name: str
    """What it is called in the log."""

    def run(self) -> float:
        """Do about 0.25 s of work at most; the seconds until it wants to run again. Anything may be raised."""


@contextmanager
def turn(layout: Layout, *, wait_seconds: float) -> Iterator[bool]:
    """Hold ``upkeep.lock``: nobody else does upkeep meanwhile. Yields whether it was to be had in time."""
    descriptor = locks.open_lock_file(layout.upkeep_lock)
    try:
        yield _lock_within(descriptor, wait_seconds)
    finally:
        os.close(descriptor)


def _lock_within(descriptor: int, wait_seconds: float) -> bool:
    deadline = time.monotonic() + wait_seconds
    while not locks.try_lock(descriptor, exclusive=True):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOCK_STEP_SECONDS)
    return True


class Upkeep:
    """Runs duties, each when it is due."""

    def __init__(
        self,
        layout: Layout,
        duties: Sequence[Duty],
        *,
        relieve: Callable[[Exception], bool] = lambda _: False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``relieve`` is told why a duty failed, and says whether it is worth another try at once."""
        self._layout = layout
        self._duties = duties
        self._relieve = relieve
        self._monotonic = monotonic
        self._due = dict.fromkeys((duty.name for duty in duties), float("-inf"))

    def run(self, stop: threading.Event) -> None:
        """Wait to become the upkeeper, then do rounds, until ``stop``."""
        descriptor = locks.open_lock_file(self._layout.upkeeper_lock)
        try:
            while not locks.try_lock(descriptor, exclusive=True):
                if stop.wait(_NEXT_TRY_SECONDS):
                    return
            while not stop.is_set():
                stop.wait(self.round(stop))
        finally:
            os.close(descriptor)

    def round(self, stop: threading.Event | None = None) -> float:
        """Run what is due; the seconds until something is due again."""
        with turn(self._layout, wait_seconds=0) as mine:
            if not mine:
                return _LOCK_STEP_SECONDS  # a command is at work
            for duty in self._duties:
                if stop is not None and stop.is_set():
                    break
                if self._due[duty.name] <= self._monotonic():
                    self._due[duty.name] = self._monotonic() + self._seconds_until_again(duty)
        soonest = min(self._due.values(), default=float("inf")) - self._monotonic()
        return min(max(0.0, soonest), _LONGEST_NAP_SECONDS)

    def _seconds_until_again(self, duty: Duty) -> float:
        before = self._monotonic()
        try:
            seconds = duty.run()
        except MillpondError as failure:
            log.warning("upkeep: %s: %s", duty.name, failure)
            return 0.0 if self._relieve(failure) else _AFTER_FAILURE_SECONDS
        except Exception as failure:
            log.error("upkeep: %s failed (%s: %s)", duty.name, type(failure).__name__, failure)
            log.debug("upkeep: %s failed", duty.name, exc_info=True)
            return 0.0 if self._relieve(failure) else _AFTER_FAILURE_SECONDS
        log.debug("upkeep: %s took %.3f s", duty.name, self._monotonic() - before)
        return seconds
