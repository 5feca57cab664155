"""A log that is not flooded: what goes wrong with every request is said once in a while, and how often it was.

The rule: the first time is said at once; what is left out is counted.
"""

import logging
import time
from collections.abc import Callable

REPEAT_SECONDS = 10.0


class Seldom:
    """Says each kind of thing at most once in ``REPEAT_SECONDS``. For several threads; a count may be off by one."""

    def __init__(self, log: logging.Logger, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._monotonic = monotonic
        self._said: dict[str, tuple[float, int]] = {}

    def say(self, level: int, kind: str, sentence: str) -> None:
        """Log ``sentence``, unless something of this ``kind`` was logged a moment ago."""
        now = self._monotonic()
        said, left_out = self._said.get(kind, (float("-inf"), 0))
        if now - said < REPEAT_SECONDS:
            self._said[kind] = said, left_out + 1
            return
        self._said[kind] = now, 0
        self._log.log(level, "%s", f"{sentence} (and {left_out} times more of late)" if left_out else sentence)
