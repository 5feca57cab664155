"""What was used and what was promised, kept out of the index.

Each process appends to a log of its own; the upkeep process merges the logs. Rewriting index entries instead would cost
more I/O than the artifact itself. A line is a group of rows with one time::

    magic, kind, row length, row count, time in ms, checksum; rows

A reader believes a log up to the first group that does not verify: a killed process may have written half of one, and
a log has all its blocks from the beginning, so zeros follow. For the rule is that a promise can be noted on a full disk,
too: without that, "present" could not be answered there (I8). And a log gets blocks only where the quota has room for
them (``store.room.growth``): whoever would have to wait for that is told so, and what finds none is refused.
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
from millpond.core.errors import NoSpace, NotReady, WouldBlock
from millpond.core.seldom import Seldom
from millpond.disk import locks
from millpond.disk.blocks import Grow
from millpond.disk.files import FILE_MODE

log = logging.getLogger(__name__)
seldom = Seldom(log)
_GROUP = struct.Struct("<4sBBHIQ")
_MAGIC = b"tch1"
_SUM = struct.Struct("<Q")
_KEPT_LOGS = 64
"""Whoever merges removes logs; this many wait for it."""
_BUFFERED_USES = 2048
_BUFFERED_AT_MOST = 16 * _BUFFERED_USES
"""While there is no room to write them; more are let go, the oldest first."""
_TRIES = 3
"""How often room is made for a group that others were quicker to take."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOBODY_WRITES = (errno.EROFS, errno.EIO)
"""What a file system says that takes no writes at all any more (EIO: it said so of two files). Eviction cannot write there
either, so what was promised stays, noted or not, and reads go on."""
_GROUP_ROWS = 8192
"""A longer list becomes several groups, so that a reader need not take in all of it at once."""


class Kind(IntEnum):
    """What happened. Values are part of the format."""

    USED = 1
    """Blobs were read, or found by a fetch that walked its closure."""
    LEASED = 2
    """Blobs were reported present or uploaded: keep them for the push that will name them (I8)."""
    NAME_USED = 3
    """A name was answered: its whole closure was used."""
    NAME_BOUND = 4
    """A name was bound: the leases of its closure end. Rows are ``Name.row`` and, since when its blobs are promised, in
    ms (8 bytes, little-endian)."""
    WALKED = 7
    """Blobs that a push names were found to be held: leased as by LEASED, until the name is bound, and no client's grant."""
    NAME_WALKED = 6
    """A name was answered after its closure was walked: as NAME_BOUND, but no lease ends."""
    COUNTED = 5
    """How often the cache had what it was asked for, since this was last said (``store.uses.tally``)."""


_KINDS = {int(kind): kind for kind in Kind}


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


def encoded_bytes(rows: Sequence[bytes]) -> int:
    """How much room rows take in a log."""
    return sum(map(len, rows)) + -(-len(rows) // _GROUP_ROWS) * (_GROUP.size + _SUM.size)


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
        known = _KINDS.get(kind)
        if magic != _MAGIC or known is None or not length or not count or end > len(content):
            return
        wanted = xxhash.xxh3_64_intdigest(body, len(body)) ^ xxhash.xxh3_64_intdigest(content[at : at + _GROUP.size])
        if _SUM.unpack_from(content, at + _GROUP.size)[0] != wanted:
            return
        yield Group(known, time_ms, [body[row : row + length] for row in range(0, len(body), length)])
        at = end


class _Log:
    """One file, with room for ``capacity`` bytes that no full disk can take away."""

    __slots__ = ("capacity", "descriptor", "end", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        locks.lock(self.descriptor, exclusive=True)  # says "alive" to whoever merges, who may just be looking
        self.end = self.capacity = 0

    def extend(self, size_bytes: int, grow: Grow) -> None:
        """Give it room for so many bytes more.

        Raises:
            NoSpace, OSError: there is none.
        """
        grow(size_bytes, lambda: os.posix_fallocate(self.descriptor, self.capacity, size_bytes))
        self.capacity += size_bytes

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
    """The log of one process. Methods may be called from any thread.

    With ``wait=False`` none waits for more than a write to the page cache.
    """

    def __init__(
        self,
        directory: str,
        clock: Clock,
        *,
        log_bytes: Callable[[], int] = lambda: limits.TOUCH_LOG_BYTES,
        make_room: Callable[[], bool] = lambda: False,
        grow: Grow = lambda _, grow: grow(),
    ) -> None:
        """``make_room`` is called when the disk is full, and says whether it is worth another try."""
        self._directory = directory
        self._clock = clock
        self._log_bytes = log_bytes
        self._make_room = make_room
        self._grow = grow
        self._guard = threading.Lock()
        self._making = threading.Lock()
        self._uses: list[bytes] = []
        self._sequence = 0
        self._paths: list[str] = []
        self._spare: _Log | None = None
        self._log: _Log | None = self._begun()
        with suppress(NoSpace, OSError):  # there is no room now; there may be when something is to be written
            self._log.extend(self._log_bytes(), grow)

    def append(self, kind: Kind, rows: Sequence[bytes], *, wait: bool = True) -> None:
        """Write rows now, all of them.

        Raises:
            WouldBlock: a new log is needed, and ``wait`` is False. Nothing was written.
            NotReady: a lease could not be written, though others may write: eviction would not know of it. Anything else
                that finds no room is only a hint and let go.
        """
        if not rows:
            return
        time_ms = self._clock()
        content = b"".join(
            encode(kind, time_ms, rows[start : start + _GROUP_ROWS]) for start in range(0, len(rows), _GROUP_ROWS)
        )
        try:
            self._write(content, wait=wait)
        except (OSError, NoSpace) as failure:
            seldom.say(logging.WARNING, "write", f"the touch log could not be written: {failure}")
            lost = isinstance(failure, NoSpace) or failure.errno not in _NOBODY_WRITES
            if kind in (Kind.LEASED, Kind.WALKED) and lost:
                raise NotReady("the cache could not note that it keeps this for you: try again") from None

    def make_way(self, size_bytes: int) -> None:
        """See to it that so much can be written without waiting, if nobody is quicker.

        Raises:
            NoSpace, OSError: there is no room for it.
        """
        self._prepare(size_bytes)

    def used(self, keys: Sequence[bytes]) -> None:
        """Note reads; they reach the log at the latest with the next :meth:`flush`."""
        with self._guard:
            self._uses += keys
            is_enough = len(self._uses) >= _BUFFERED_USES
        if is_enough:
            with suppress(WouldBlock):
                self._flush(wait=False)

    def flush(self) -> None:
        """Write what is buffered, and see to it that the next log is there before this one is full."""
        self._flush(wait=True)
        with self._guard:
            needs_spare = self._log is not None and self._spare is None and self._log.end * 2 >= self._log.capacity
        if needs_spare:
            with suppress(OSError, NoSpace):
                self._prepare(0)

    def close(self) -> None:
        """Write what is buffered and let the log go."""
        self._flush(wait=True)
        with self._guard:
            for held in (self._log, self._spare):
                if held is not None:
                    os.close(held.descriptor)
            self._log = self._spare = None

    def _flush(self, *, wait: bool) -> None:
        with self._guard:
            uses, self._uses = self._uses, []
        if not uses:
            return
        try:
            self._write(encode(Kind.USED, self._clock(), list(dict.fromkeys(uses))), wait=wait)
        except WouldBlock:
            with self._guard:
                self._uses = (uses + self._uses)[-_BUFFERED_AT_MOST:]
            raise
        except (OSError, NoSpace) as failure:
            seldom.say(logging.WARNING, "write", f"the touch log could not be written: {failure}")

    def _write(self, content: bytes, *, wait: bool) -> None:
        try:
            self._write_once(content, wait=wait)
        except OSError as failure:
            # A bad place under one file is none under the next; where there is no room, some may be made.
            if failure.errno != errno.EIO and not (failure.errno in _FULL and self._make_room()):
                raise
            self._write_once(content, wait=wait)

    def _write_once(self, content: bytes, *, wait: bool) -> None:
        for _ in range(_TRIES):
            with self._guard:
                if self._log is None:
                    return
                if (
                    not self._log.has_room(len(content))
                    and self._spare is not None
                    and self._spare.has_room(len(content))
                ):
                    os.close(self._log.descriptor)
                    self._log, self._spare = self._spare, None
                if self._log.has_room(len(content)):
                    self._log.write(content)
                    return
            if not wait:
                raise WouldBlock
            self._prepare(len(content))
        raise NoSpace("others were quicker to fill the touch log")

    def _prepare(self, size_bytes: int) -> None:
        """Have a log ready for so many bytes, and for more when there is none behind the one that is written.

        Raises:
            NoSpace, OSError: there is no room for it.
        """
        with self._making:
            with self._guard:
                held = [one for one in (self._log, self._spare) if one is not None]
            if not held or (size_bytes and any(one.has_room(size_bytes) for one in held)):
                return
            try:
                spare = self._begun()
            except OSError:
                held[0].extend(size_bytes, self._grow)  # no descriptor is left, say: this one grows a little longer
                return
            try:
                spare.extend(max(size_bytes, self._log_bytes()), self._grow)
            except BaseException:
                spare.discard()
                self._paths.remove(spare.path)
                raise
            with self._guard:
                unused, self._spare = (spare, None) if self._log is None else (self._spare, spare)
            if unused is not None:
                unused.discard()

    def _begun(self) -> _Log:
        while True:
            self._sequence += 1
            path = os.path.join(self._directory, f"{self._clock():x}-{os.getpid()}-{self._sequence}.log")
            with suppress(FileExistsError):  # another store of this process, in the same millisecond
                made = _Log(path)
                if made.has_name:
                    break
                made.discard()
        self._paths.append(path)
        if len(self._paths) > _KEPT_LOGS:
            with suppress(FileNotFoundError):  # merged
                os.unlink(self._paths.pop(0))
        return made
