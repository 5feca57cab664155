"""What was used and what was promised, kept out of the index.

Each process appends to a log of its own; the upkeep process merges the logs. Rewriting index entries instead would cost
more I/O than the artifact itself. A line is a group of rows with one time::

    magic, kind, row length, row count, time in ms, checksum; rows

A reader believes a log up to the first group that does not verify: a killed process may have written half of one.
"""

import errno
import logging
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import NamedTuple

import xxhash

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.errors import NotReady
from millpond.disk import locks

log = logging.getLogger(__name__)
_GROUP = struct.Struct("<4sBBHIQ")
_MAGIC = b"tch1"
_SUM = struct.Struct("<Q")
_KEPT_LOGS = 4
_BUFFERED_USES = 2048


class Kind(IntEnum):
    """What happened. Values are part of the format."""

    USED = 1
    """Blobs were read."""
    LEASED = 2
    """Blobs were reported present or uploaded: keep them for the push that will name them (I8)."""
    NAME_USED = 3
    """A name was answered: its whole closure was used."""
    NAME_BOUND = 4
    """A name was bound: the leases of its closure end."""


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


class TouchLog:
    """The log of one process. Methods may be called from any thread; none waits for more than a write to the page cache."""

    def __init__(self, directory: str, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._guard = threading.Lock()
        self._uses: list[bytes] = []
        self._size = 0
        self._sequence = 0
        self._descriptor = -1
        self._paths: list[str] = []
        self._begin()

    def append(self, kind: Kind, rows: Sequence[bytes]) -> None:
        """Write a group now.

        Raises:
            NotReady: a lease could not be written. Anything else that finds no room is only a hint and let go.
        """
        if rows:
            with self._guard:
                try:
                    self._write(encode(kind, self._clock(), rows))
                except OSError as failure:
                    log.warning("the touch log could not be written: %s", failure)
                    if kind is Kind.LEASED:
                        raise NotReady("the cache could not note that it keeps this for you: try again") from None

    def used(self, keys: Sequence[bytes]) -> None:
        """Note reads; they reach the log at the latest with the next :meth:`flush`."""
        with self._guard:
            self._uses += keys
            if len(self._uses) >= _BUFFERED_USES:
                self._flush()

    def flush(self) -> None:
        """Write what is buffered."""
        with self._guard:
            self._flush()

    def close(self) -> None:
        """Write what is buffered and let the log go."""
        with self._guard:
            if self._descriptor >= 0:
                self._flush()
                os.close(self._descriptor)
                self._descriptor = -1

    def _flush(self) -> None:
        if self._uses and self._descriptor >= 0:
            uses, self._uses = self._uses, []
            try:
                self._write(encode(Kind.USED, self._clock(), list(dict.fromkeys(uses))))
            except OSError as failure:
                log.warning("the touch log could not be written: %s", failure)

    def _write(self, group: bytes) -> None:
        if self._descriptor < 0:
            return
        written = os.write(self._descriptor, group)
        if written < len(group):
            # A torn group would hide all that follow it.
            os.ftruncate(self._descriptor, self._size)
            raise OSError(errno.ENOSPC, "no room for a whole group")
        self._size += written
        if self._size >= limits.TOUCH_LOG_BYTES:
            with suppress(OSError):  # then this one grows a little longer
                self._begin()

    def _begin(self) -> None:
        path = os.path.join(self._directory, f"{self._clock():x}-{os.getpid()}-{self._sequence + 1}.log")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        locks.try_lock(descriptor, exclusive=True)  # says "alive" to whoever merges
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._sequence = descriptor, self._sequence + 1
        self._size = 0
        self._paths.append(path)
        if len(self._paths) > _KEPT_LOGS:
            os.unlink(self._paths.pop(0))
