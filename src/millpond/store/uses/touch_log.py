"""What was used and what was promised, kept out of the index.

Each process appends to a log of its own; the upkeep process merges the logs. Rewriting index entries instead would cost
more I/O than the artifact itself. A line is a group of rows with one time::

    magic, kind, row length, row count, time in ms, checksum; rows

A reader believes a log up to the first group that does not verify: a killed process may have written half of one, and
a log has all its blocks from the beginning, so zeros follow. For the rule is that a promise can be noted on a full disk,
too: without that, "present" could not be answered there (I8).
"""

import errno
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import NamedTuple

import xxhash

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.errors import NotReady
from millpond.core.seldom import Seldom
from millpond.disk import locks
from millpond.disk.files import FILE_MODE

log = logging.getLogger(__name__)
seldom = Seldom(log)
_GROUP = struct.Struct("<4sBBHIQ")
_MAGIC = b"tch1"
_SUM = struct.Struct("<Q")
_KEPT_LOGS = 64
"""Whoever merges removes logs; this many wait for it."""
_BUFFERED_USES = 2048
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOBODY_WRITES = (errno.EROFS, errno.EIO)
"""What a file system says that takes no writes at all any more (EIO: it said so of two files). Eviction cannot write there
either, so what was promised stays, noted or not, and reads go on."""
_GROUP_ROWS = 8192
"""A longer list becomes several groups, so that a reader need not take in all of it at once."""


class Kind(IntEnum):
    """What happened. Values are part of the format."""

    USED = 1
    """Blobs were read."""
    LEASED = 2
    """Blobs were reported present or uploaded: keep them for the push that will name them (I8)."""
    NAME_USED = 3
    """A name was answered: its whole closure was used."""
    NAME_BOUND = 4
    """A name was bound: the leases of its closure end. Rows are ``Name.row`` and, since when its blobs are promised, in
    ms (8 bytes, little-endian)."""
    WALKED = 7
    """Blobs of a name were found to be held: leased as by LEASED, until the name is bound, and no client's grant."""
    NAME_WALKED = 6
    """A name was answered after its closure was walked: as NAME_BOUND, but no lease ends."""
    COUNTED = 5
    """How often the cache had what it was asked for, since this was last said (``store.uses.tally``)."""


class Group(NamedTuple):
    """One line of a log. Rows are index keys for blobs and ``Name.row`` for names."""

    kind: Kind
    time_ms: int
    rows: list[bytes]


def encode(kind: Kind, time_ms: int, rows: Sequence[bytes]) -> bytes:
    """A group's bytes; all rows have the same length."""
    head = _GROUP.pack(_MAGIC, kind, len(rows[0]), 0, len(rows), time_ms)
    body = b"".join(rows)
    return b"".join((head, _SUM.pack(xxhash.xxh3_64_intdigest(body, len(body)) ^ xxhash.xxh3_64_intdigest(head)), body))


def group_bytes(group: Group) -> int:
    """How much room a group that was decoded takes in its log."""
    return _GROUP.size + _SUM.size + sum(map(len, group.rows))


def decode(content: bytes) -> Iterator[Group]:
    """The groups of a log, up to the first that does not verify."""
    at = 0
    while at + _GROUP.size + _SUM.size <= len(content):
        magic, kind, length, _, count, time_ms = _GROUP.unpack_from(content, at)
        begin = at + _GROUP.size + _SUM.size
        end = begin + length * count
        body = content[begin:end]
        if magic != _MAGIC or kind not in set(Kind) or not length or not count or end > len(content):
            return
        wanted = xxhash.xxh3_64_intdigest(body, len(body)) ^ xxhash.xxh3_64_intdigest(content[at : at + _GROUP.size])
        if _SUM.unpack_from(content, at + _GROUP.size)[0] != wanted:
            return
        yield Group(Kind(kind), time_ms, [body[row : row + length] for row in range(0, len(body), length)])
        at = end


class _Log:
    """One file, with room for ``capacity`` bytes that no full disk can take away."""

    __slots__ = ("capacity", "descriptor", "end", "path")

    def __init__(self, path: str, capacity: int) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        locks.lock(self.descriptor, exclusive=True)  # says "alive" to whoever merges, who may just be looking
        self.end = 0
        self.capacity = capacity
        if capacity:
            try:
                os.posix_fallocate(self.descriptor, 0, capacity)
            except OSError:
                self.discard()
                raise

    @property
    def has_name(self) -> bool:
        """Whether it is still there: whoever merges removes what nobody holds."""
        return os.fstat(self.descriptor).st_nlink > 0

    def discard(self) -> None:
        """Remove a log in which nothing is."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        os.close(self.descriptor)

    def has_room(self, size_bytes: int) -> bool:
        return self.end + size_bytes <= self.capacity

    def write(self, content: bytes) -> None:
        """Write all of it.

        Raises:
            OSError: nothing of it is there.
        """
        at = self.end
        rest = memoryview(content)
        try:
            while rest:
                written = os.pwrite(self.descriptor, rest, at)
                rest, at = rest[written:], at + written
        except OSError:
            self.capacity = self.end  # the next goes to another log; what there is of this one will be written over
            raise
        self.end = at


class TouchLog:
    """The log of one process. Methods may be called from any thread; none waits for more than a write to the page cache."""

    def __init__(
        self,
        directory: str,
        clock: Clock,
        *,
        log_bytes: Callable[[], int] = lambda: limits.TOUCH_LOG_BYTES,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        """``make_room`` is called when the disk is full, and says whether it is worth another try."""
        self._directory = directory
        self._clock = clock
        self._log_bytes = log_bytes
        self._make_room = make_room
        self._guard = threading.Lock()
        self._making = threading.Lock()
        self._uses: list[bytes] = []
        self._sequence = 0
        self._paths: list[str] = []
        self._spare: _Log | None = None
        self._log: _Log | None
        try:
            self._log = self._make(self._log_bytes())
        except OSError:
            self._log = self._make(0)  # the disk is full: it grows as it is written, as long as it can

    def append(self, kind: Kind, rows: Sequence[bytes]) -> None:
        """Write rows now, all of them.

        Raises:
            NotReady: a lease could not be written, though others may write: eviction would not know of it. Anything else
                that finds no room is only a hint and let go.
        """
        if not rows:
            return
        time_ms = self._clock()
        content = b"".join(
            encode(kind, time_ms, rows[start : start + _GROUP_ROWS]) for start in range(0, len(rows), _GROUP_ROWS)
        )
        with self._guard:
            try:
                self._write(content)
            except OSError as failure:
                seldom.say(logging.WARNING, "write", f"the touch log could not be written: {failure}")
                if kind in (Kind.LEASED, Kind.WALKED) and failure.errno not in _NOBODY_WRITES:
                    raise NotReady("the cache could not note that it keeps this for you: try again") from None

    def used(self, keys: Sequence[bytes]) -> None:
        """Note reads; they reach the log at the latest with the next :meth:`flush`."""
        with self._guard:
            self._uses += keys
            if len(self._uses) >= _BUFFERED_USES:
                self._flush()

    def flush(self) -> None:
        """Write what is buffered, and see to it that the next log is there before this one is full."""
        with self._guard:
            self._flush()
            needs_spare = self._log is not None and self._spare is None and self._log.end * 2 >= self._log.capacity
        if needs_spare:
            with suppress(OSError):
                self._keep(self._make(self._log_bytes()))

    def _keep(self, spare: _Log) -> None:
        with self._guard:
            if self._log is not None and self._spare is None:
                self._spare = spare
            else:
                spare.discard()

    def close(self) -> None:
        """Write what is buffered and let the log go."""
        with self._guard:
            self._flush()
            for held in (self._log, self._spare):
                if held is not None:
                    os.close(held.descriptor)
            self._log = self._spare = None

    def _flush(self) -> None:
        if self._uses and self._log is not None:
            uses, self._uses = self._uses, []
            try:
                self._write(encode(Kind.USED, self._clock(), list(dict.fromkeys(uses))))
            except OSError as failure:
                seldom.say(logging.WARNING, "write", f"the touch log could not be written: {failure}")

    def _write(self, content: bytes) -> None:
        try:
            self._write_once(content)
        except OSError as failure:
            # A bad place under one file is none under the next; where there is no room, some may be made.
            if failure.errno != errno.EIO and not (failure.errno in _FULL and self._make_room()):
                raise
            self._write_once(content)

    def _write_once(self, content: bytes) -> None:
        if self._log is None:
            return
        if not self._log.has_room(len(content)):
            with suppress(OSError):  # then this one grows a little longer
                self._go_on(self._log, len(content))
        self._log.write(content)

    def _go_on(self, full: _Log, size_bytes: int) -> None:
        """Go on in the next log."""
        if self._spare is not None and not self._spare.has_room(size_bytes):
            self._spare.discard()
            self._spare = None
        self._log, self._spare = self._spare or self._make(max(size_bytes, self._log_bytes())), None
        os.close(full.descriptor)

    def _make(self, capacity: int) -> _Log:
        with self._making:
            while True:
                self._sequence += 1
                path = os.path.join(self._directory, f"{self._clock():x}-{os.getpid()}-{self._sequence}.log")
                with suppress(FileExistsError):  # another store of this process, in the same millisecond
                    made = _Log(path, capacity)
                    if made.has_name:
                        break
                    made.discard()
            self._paths.append(path)
            if len(self._paths) > _KEPT_LOGS:
                with suppress(FileNotFoundError):  # merged
                    os.unlink(self._paths.pop(0))
        return made
