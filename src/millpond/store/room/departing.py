"""Segments that go: their names first, their bytes when the last reader has let go.

A reader that has begun finishes (I5), and every process keeps segments open for a while after it read them; so a file
that nobody can find any more may still take its blocks. The rule: it is charged until nobody has it open, or ``df`` would
exceed the quota by whatever is being read. Whether somebody has is asked of the kernel: a write lease is only given on a
file that nobody else has open (fcntl(2), F_SETLEASE).

Until then it lies there under a name that no reader looks for, so that a successor can ask as well, however its
predecessor ended.
"""

import errno
import fcntl
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import lmdb

from millpond.core.errors import MillpondError
from millpond.disk.blocks import ROWS
from millpond.store.index import Index
from millpond.store.room.space import Space
from millpond.store.room.taken import BLOCK_BYTES
from millpond.store.segments.files import departed_path, departed_segments

_BLIND_SECONDS = 1.0
"""Where the file system gives no leases: caches of descriptors are cleared sooner than this."""
_PARTING_SECONDS = 0.3
"""Servers let go of what they do not read several times in this."""
_LINGERING_SECONDS = 1.0
"""Whoever reads at the pace of a network is through by then, or nearly."""


@dataclass(slots=True)
class _Leaving:
    path: str
    descriptor: int
    is_leased: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def size_bytes(self) -> int:
        return os.fstat(self.descriptor).st_blocks * BLOCK_BYTES

    def is_only_ours(self) -> bool:
        try:
            # Who opens a file on which we have a lease is told to wait, and we are told of it, by SIGIO, which would end us;
            # by this signal if we like, which does nothing. It waits until we have closed the file, which is soon.
            fcntl.fcntl(self.descriptor, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as failure:
            if failure.errno == errno.EAGAIN:
                return False
            return time.monotonic() - self.since > _BLIND_SECONDS
        self.is_leased = True
        return True

    def end(self) -> None:
        """Remove it, once nobody else has it open. Its blocks have returned then."""
        try:
            # XFS returns the blocks of a removed file some time later, and those of a truncated one at once. A file that
            # has another name is somebody's copy of the repository, made of links.
            if self.is_leased and os.fstat(self.descriptor).st_nlink == 1:
                with suppress(OSError):
                    os.ftruncate(self.descriptor, 0)
            with suppress(FileNotFoundError):
                os.unlink(self.path)
        finally:
            os.close(self.descriptor)  # the last one; and the lease, or our next open breaks it


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError:  # not ours, or a disk that takes no writes any more
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


class Departing:
    """The segments that are leaving, as one upkeep process knows them. Not for several threads."""

    def __init__(self, directory: str, space: Space, index: Index) -> None:
        self._directory = directory
        self._space = space
        self._index = index
        self._leaving: dict[int, _Leaving] = {}

    def __len__(self) -> int:
        return len(self._leaving)

    def lingering_bytes(self) -> int:
        """What somebody reads so slowly that it cannot be counted on to return soon."""
        since = time.monotonic() - _LINGERING_SECONDS
        return sum(file.size_bytes for file in self._leaving.values() if file.since < since)

    def depart(self, segments: Mapping[int, str]) -> None:
        """Let segments (number to path) go, none of whose blobs is listed any more. Files that are gone are fine.

        Raises:
            NoSpace, lmdb.Error: the index could not be written. Nothing was renamed.
        """
        with self._index.writing(rows=ROWS + len(segments)) as txn:  # first, so that a successor knows
            for number in segments:
                self._space.going(txn, number)
        for number, path in segments.items():
            self._hide(number, path)
        self._free([number for number in segments if number not in self._leaving])
        self.collect()

    def _hide(self, number: int, path: str) -> None:
        departed = departed_path(path)
        try:
            os.rename(path, departed)
        except FileNotFoundError:
            pass  # it may have that name already
        except OSError:  # the disk is so full that a longer name needs a block it does not have
            self._know(number, path)
            os.unlink(path)
            return
        self._know(number, departed)

    def _know(self, number: int, path: str) -> None:
        if number in self._leaving:
            self._leaving[number].path = path
        else:
            with suppress(FileNotFoundError):
                self._leaving[number] = _Leaving(path, _opened(path))

    def collect(self) -> int:
        """Free what nobody has open any more; how many bytes that were."""
        gone = [number for number, file in self._leaving.items() if file.is_only_ours()]
        for number in gone:
            self._leaving.pop(number).end()
        return self._free(gone)

    def take_over(self) -> int:
        """Go on with what another process let go and did not see out; how many bytes could be freed at once."""
        for number, path in departed_segments(self._directory):
            self._know(number, path)
        with self._index.writing() as txn:
            theirs = set(self._space.going_segments(txn)) - self._leaving.keys()
            gone = [number for number in theirs if not os.path.exists(self._space.segment_path(number))]
            freed = sum([self._space.free(txn, number) for number in gone])
        return freed + self.collect()

    def _free(self, numbers: Sequence[int]) -> int:
        if not numbers:
            return 0
        with self._index.writing(rows=ROWS + len(numbers)) as txn:
            return sum([self._space.free(txn, number) for number in numbers])

    def close(self) -> None:
        """Wait a moment for readers to let go; what they still hold is freed by the next upkeeper."""
        until = time.monotonic() + _PARTING_SECONDS
        with suppress(MillpondError, lmdb.Error):
            self.collect()
            while self._leaving and time.monotonic() < until:
                time.sleep(_PARTING_SECONDS / 10)
                self.collect()
        for file in self._leaving.values():
            os.close(file.descriptor)
        self._leaving.clear()
