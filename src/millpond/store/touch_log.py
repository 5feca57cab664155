"""What was used and what was promised, kept out of the index.

Each process appends to a log of its own; the upkeep process merges the logs. Rewriting index entries instead would cost
more I/O than the artifact itself. A line is a group of rows with one time::

    magic, kind, row length, row count, time in ms, checksum; rows

A reader believes a log up to the first group that does not verify: a killed process may have written half of one.
"""

import os
import struct
import threading
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import xxhash

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.disk import locks

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


def decode(log: bytes) -> Iterator[Group]:
    """The groups of a log, up to the first that does not verify."""
    at = 0
    while at + _GROUP.size + _SUM.size <= len(log):
        magic, kind, length, _, count, time_ms = _GROUP.unpack_from(log, at)
        begin = at + _GROUP.size + _SUM.size
        end = begin + length * count
        body = log[begin:end]
        if magic != _MAGIC or kind not in set(Kind) or not length or not count or end > len(log):
            return
        wanted = xxhash.xxh3_64_intdigest(body, len(body)) ^ xxhash.xxh3_64_intdigest(log[at : at + _GROUP.size])
        if _SUM.unpack_from(log, at + _GROUP.size)[0] != wanted:
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
        """Write a group now."""
        if rows:
            with self._guard:
                self._write(encode(kind, self._clock(), rows))

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
            self._write(encode(Kind.USED, self._clock(), list(dict.fromkeys(uses))))

    def _write(self, group: bytes) -> None:
        if self._descriptor < 0:
            return
        self._size += os.write(self._descriptor, group)
        if self._size >= limits.TOUCH_LOG_BYTES:
            os.close(self._descriptor)
            self._begin()

    def _begin(self) -> None:
        self._sequence += 1
        path = os.path.join(self._directory, f"{self._clock():x}-{os.getpid()}-{self._sequence}.log")
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        locks.try_lock(self._descriptor, exclusive=True)  # says "alive" to whoever merges
        self._size = 0
        self._paths.append(path)
        if len(self._paths) > _KEPT_LOGS:
            os.unlink(self._paths.pop(0))
