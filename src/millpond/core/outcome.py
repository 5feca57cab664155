"""What a piece of work came to, for whoever waits for it in another thread.

A ``concurrent.futures.Future`` has a condition, five states and cancelling, and a push pays more for these than for
writing its name. This is the rest of it: work that was begun is never cancelled, and few wait with a thread.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Outcome(Generic[T]):
    """Set once. Methods may be called from any thread."""

    __slots__ = ("_calls", "_failure", "_guard", "_is_done", "_result")

    _result: T

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._is_done = False
        self._failure: Exception | None = None
        self._calls: tuple[Callable[[], None], ...] = ()

    def set_result(self, result: T) -> None:
        """It is done, and this is what came of it."""
        self._result = result
        self._done()

    def set_exception(self, failure: Exception) -> None:
        """It is done, and failed."""
        self._failure = failure
        self._done()

    def _done(self) -> None:
        with self._guard:
            self._is_done = True
        calls, self._calls = self._calls, ()  # none is added any more, and what they have in them may lead back here
        for call in calls:
            call()

    def when_done(self, call: Callable[[], None]) -> None:
        """Have ``call`` called, by the thread that does the work, or now if it is done. It must not raise."""
        with self._guard:
            if not self._is_done:
                self._calls += (call,)
                return
        call()

    def exception(self) -> Exception | None:
        """Why it failed, if it did. Waits until it is done."""
        if not self._is_done:
            done = threading.Event()
            self.when_done(done.set)
            done.wait()
        return self._failure

    def result(self) -> T:
        """What came of it. Waits until it is done.

        Raises:
            Exception: why it failed.
        """
        failure = self.exception()
        if failure is not None:
            raise failure
        return self._result
