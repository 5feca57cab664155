"""The exclusive side of ``promise.lock``, which those who promise share for a moment each.

The rule: nobody waits long for us. Whoever wants it asks, lets everybody else go on, and asks again.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from millpond.core.errors import NotReady
from millpond.disk import locks

_LOCK_SECONDS = 0.02
LOCK_TRIES = 100
LOCK_STEP_SECONDS = 0.0005


class PromiseLock:
    """The exclusive side of ``promise.lock``."""

    def __init__(self, path: str) -> None:
        self._descriptor = locks.open_lock_file(path)
        self._asked = False

    @contextmanager
    def exclusively(self) -> Iterator[bool]:
        """Hold it, if it can be had within a moment; yields whether it is held."""
        deadline = time.monotonic() + _LOCK_SECONDS
        while not (held := locks.try_lock(self._descriptor, exclusive=True)):
            locks.ask(self._descriptor)  # or those who share it would never let us in
            self._asked = True
            if time.monotonic() >= deadline:
                break
            time.sleep(LOCK_STEP_SECONDS)
        try:
            yield held
        finally:
            locks.unlock(self._descriptor)
            if held and self._asked:
                locks.ask_no_more(self._descriptor)
                self._asked = False

    def fence(self) -> None:
        """Wait until every promise that was being made is in its log.

        Between pointing entries elsewhere and choosing what goes this is done once: a name may have been answered by
        where its blobs lay before, with its line still on the way.

        Raises:
            NotReady: somebody holds on to the lock.
        """
        for _ in range(LOCK_TRIES):
            with self.exclusively() as held:
                if held:
                    return
            time.sleep(LOCK_STEP_SECONDS)
        raise NotReady("a process holds on to promise.lock, so nothing can be evicted: is one of them stopped?")

    def close(self) -> None:
        """Let it go."""
        os.close(self._descriptor)
