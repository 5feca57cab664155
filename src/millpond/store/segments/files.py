"""Descriptors of segments, shared by all readers of a process.

Segment numbers are never reused (I9), so a cached descriptor can never mean another file. A reader keeps the file it
holds open for as long as it reads, even after it was evicted (I5).
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator

from millpond.core import limits
from millpond.store.failures import told_of_reading
from millpond.store.segments.format import SEGMENT_HEADER_BYTES, SegmentHeader

_DEPARTED = ".gone"


def segment_name(number: int) -> str:
    """The file name of a segment."""
    return f"{number:08x}.seg"


def segment_number(name: str) -> int | None:
    """The number in a file name, or None when it is no segment's."""
    stem, dot, suffix = name.partition(".")
    if suffix != "seg" or not dot or len(stem) != 8:
        return None
    try:
        return int(stem, 16)
    except ValueError:
        return None


def departed_path(path: str) -> str:
    """What a segment at ``path`` is called once nobody may find it any more (``store.room.departing``)."""
    return path + _DEPARTED


def departed_segments(directory: str) -> Iterator[tuple[int, str]]:
    """The number and path of every segment that is only there for those who read it."""
    for name in os.listdir(directory):
        number = segment_number(name.removesuffix(_DEPARTED))
        if number is not None and name.endswith(_DEPARTED):
            yield number, os.path.join(directory, name)


class SegmentFile:
    """One open segment; closed when nobody refers to it any more."""

    __slots__ = ("descriptor", "header", "number", "seed")

    def __init__(self, path: str, number: int) -> None:
        """Open it.

        Raises:
            FileNotFoundError: it was evicted.
            Damaged: its header does not verify.
        """
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.header = SegmentHeader.decode(os.pread(self.descriptor, SEGMENT_HEADER_BYTES, 0))
        self.number = number
        self.seed = self.header.seed

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", -1)
        if descriptor >= 0:
            os.close(descriptor)


class SegmentFiles:
    """The open segments, least recently used first."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._files: OrderedDict[int, SegmentFile] = OrderedDict()
        self._guard = threading.Lock()
        self._changed_ns = [0, 0]

    def get(self, number: int) -> SegmentFile:
        """A segment.

        Raises:
            FileNotFoundError: it was evicted.
            Damaged: its header does not verify.
            NotReady: the machine has no means to open it now.
        """
        with self._guard:
            held = self._files.get(number)
            if held is not None:
                self._files.move_to_end(number)
                return held
        try:
            fresh = SegmentFile(self._path(number), number)
        except FileNotFoundError:
            raise
        except OSError as failure:
            raise told_of_reading(failure) from failure
        with self._guard:
            held = self._files.setdefault(number, fresh)
            while len(self._files) > limits.OPEN_SEGMENTS:
                self._files.popitem(last=False)
        return held

    def _path(self, number: int) -> str:
        return os.path.join(self.directory, segment_name(number))

    def drop(self, number: int) -> None:
        """Let go of one."""
        with self._guard:
            self._files.pop(number, None)

    def drop_departed(self) -> None:
        """Let go of files that were evicted, so that their space returns as soon as nobody reads them.

        Cheap while none was: nothing is looked at unless the directory has changed.
        """
        changed_ns = os.stat(self.directory).st_mtime_ns
        # Twice the same: a file that was opened before it went may have been added just after the last look.
        if self._changed_ns == [changed_ns] * 2:
            return
        self._changed_ns = [self._changed_ns[1], changed_ns]
        with self._guard:
            gone = [number for number in self._files if not os.path.exists(self._path(number))]
            dropped = [self._files.pop(number) for number in gone]
        del dropped

    def close(self) -> None:
        """Let go of all."""
        with self._guard:
            self._files.clear()
