"""Beginning segments: a number that was never used, and a file that is locked before anything is in it.

The rule (I9): a number is never given to a second segment, also where the counter went back.
"""

import os
from collections.abc import Callable, Iterable

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.disk import locks
from millpond.disk.files import FILE_MODE
from millpond.store.segments.files import segment_name
from millpond.store.segments.format import SegmentHeader
from millpond.store.segments.open_segment import OpenSegment, write_all

TakeNumbers = Callable[[int], Iterable[int]]
"""So many numbers that nobody was given before."""


class NewSegments:
    """Begins segments in one directory. Not for several threads."""

    def __init__(self, directory: str, take_numbers: TakeNumbers, clock: Clock) -> None:
        self._directory = directory
        self._take_numbers = take_numbers
        self._clock = clock
        self._numbers: list[int] = []

    def next_number(self) -> int:
        """A segment number that was never used (I9)."""
        while True:
            if not self._numbers:
                self._numbers = sorted(self._take_numbers(limits.NUMBERS_AT_ONCE), reverse=True)
            number = self._numbers.pop()
            # The counter lives with the names: it goes back when somebody restores an older copy of them.
            if not os.path.exists(os.path.join(self._directory, segment_name(number))):
                return number

    def create(self) -> OpenSegment:
        """A segment that holds its header and nothing else.

        Raises:
            OSError: it could not be made, and nothing is left of it.
        """
        header = SegmentHeader.new(self.next_number(), self._clock())
        path = os.path.join(self._directory, segment_name(header.number))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        locks.try_lock(descriptor, exclusive=True)
        segment = OpenSegment(descriptor, header, path)
        try:
            write_all(descriptor, [header.encode()], 0)
        except OSError:
            segment.discard()
            raise
        return segment
