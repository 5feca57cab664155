"""Segments that go: their names first, their bytes when the last reader has let go.

A reader that has begun finishes (I5), and every process keeps segments open for a while after it read them; so a file
whose name is gone may still take its blocks. The rule: it is charged until nobody has it open, or ``df`` would exceed the
quota by whatever is being read. Whether somebody has is asked of the kernel: a write lease is only given on a file that
nobody else has open (fcntl(2), F_SETLEASE).
"""

import errno
import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from millpond.disk.group_writer import GroupWriter, Transaction
from millpond.store.room.space import Space

_BLIND_SECONDS = 1.0
"""Where the file system gives no leases: caches of descriptors are cleared sooner than this."""


@dataclass(slots=True)
class _Nameless:
    descriptor: int
    since: float = field(default_factory=time.monotonic)

    def is_only_ours(self) -> bool:
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as failure:
            if failure.errno == errno.EAGAIN:
                return False
            return time.monotonic() - self.since > _BLIND_SECONDS
        return True


class Departing:
    """The nameless segments of one upkeep process. Not for several threads."""

    def __init__(self, space: Space, index_writer: GroupWriter) -> None:
        self._space = space
        self._index_writer = index_writer
        self._nameless: dict[int, _Nameless] = {}
        self._took_over = False

    def __len__(self) -> int:
        return len(self._nameless)

    def depart(self, segments: Mapping[int, str]) -> None:
        """Unlink segments (number to path) none of whose blobs is listed any more. Files that are gone are fine.

        Raises:
            MillpondError: the index could not be written. Nothing was unlinked.
        """

        def going(txn: Transaction) -> None:
            for number in segments:
                self._space.going(txn, number)

        self._index_writer.run(going)  # first, so that a successor knows
        gone: list[int] = []
        for number, path in segments.items():
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if number not in self._nameless:
                    gone.append(number)
                continue
            os.unlink(path)
            self._nameless[number] = _Nameless(descriptor)
        self._free(gone)
        self.collect()

    def collect(self) -> int:
        """Free what nobody has open any more; how many bytes that were."""
        freed = 0 if self._took_over else self._take_over()
        gone = [number for number, file in self._nameless.items() if file.is_only_ours()]
        for number in gone:
            os.close(self._nameless.pop(number).descriptor)  # the last one: its blocks return
        return freed + self._free(gone)

    def _take_over(self) -> int:
        """Free what an earlier upkeeper unlinked: nobody can tell any more who still has it open."""

        def apply(txn: Transaction) -> int:
            theirs = set(self._space.going_segments(txn)) - self._nameless.keys()
            gone = [number for number in theirs if not os.path.exists(self._space.segment_path(number))]
            return sum(self._space.free(txn, number) for number in gone)

        freed: int = self._index_writer.run(apply)
        self._took_over = True
        return freed

    def _free(self, numbers: Sequence[int]) -> int:
        if not numbers:
            return 0
        return self._index_writer.run(lambda txn: sum(self._space.free(txn, number) for number in numbers))

    def close(self) -> None:
        """Let go; what was not freed is freed by the next upkeeper."""
        for file in self._nameless.values():
            os.close(file.descriptor)
        self._nameless.clear()
