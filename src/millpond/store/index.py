"""The index: where each blob lies. It may be lost; it is rebuilt from the segments.

One LMDB environment (``disk.environment``) that is never synced while it runs: a killed process does not hurt it, and
after a power loss it is not believed (``store.repository.opening``). Write transactions are made in one thread per process, which
groups what waits (``disk.group_writer``); no read transaction lives longer than the call that began it.

The rule (I1): what is listed is complete and verified. (I3): an entry goes before its bytes do.
"""

import logging
import operator
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import NamedTuple, Protocol

import lmdb

from millpond.core import limits
from millpond.core.errors import NotReady
from millpond.core.seldom import Seldom
from millpond.disk import blocks, environment
from millpond.disk.environment import open_environment
from millpond.disk.group_writer import Transaction

seldom = Seldom(logging.getLogger(__name__))
_TABLES = (b"blobs", b"segments", b"closures", b"space", b"refused", b"state")
ENTRY = struct.Struct("<IIQQ")
"""An encoded :class:`Entry`."""
_SEGMENT_ROW = struct.Struct("<BBHIQQQI")
_NUMBER = struct.Struct(">I")
_SEGMENT = operator.itemgetter(slice(4))

INDEX_FORMAT = 1
"""Raised by every change of a table; an index of another format is made anew."""


class SegmentState(IntEnum):
    """A segment's life. Values are part of the index's format."""

    OPEN = 1
    SEALED = 2
    SWEEPING = 3
    """Eviction is taking its entries away: what still points here counts as missing."""


_STATES = {int(state): state for state in SegmentState}


class Entry(NamedTuple):
    """Where one blob lies."""

    segment: int
    offset: int
    size_bytes: int
    checksum: int

    def encode(self) -> bytes:
        """24 bytes."""
        return ENTRY.pack(*self)

    @classmethod
    def decode(cls, value: bytes) -> "Entry":
        """The inverse of :meth:`encode`."""
        return cls(*ENTRY.unpack(value))


class SegmentRow(NamedTuple):
    """What the index knows of a segment. Offsets and sizes in bytes."""

    state: SegmentState
    end: int
    """Up to here are records that the index lists; bytes beyond are nobody's."""
    synced_to: int = 0
    """Up to here the file is on disk, its directory entry too."""
    live_bytes: int = 0
    """Record bytes of blobs that are listed here."""
    live_count: int = 0
    incarnation: int = 0
    """Raised when a blob is lost out of it, so that closures that lie here are walked again."""
    suspect: bool = False
    """A sync of it failed: what it holds may never be called durable."""

    def encode(self) -> bytes:
        """The row's bytes."""
        return _SEGMENT_ROW.pack(
            self.state,
            self.suspect,
            0,
            self.incarnation,
            self.end,
            self.synced_to,
            self.live_bytes,
            self.live_count,
        )

    @classmethod
    def decode(cls, value: bytes) -> "SegmentRow":
        """The inverse of :meth:`encode`."""
        state, suspect, _, incarnation, end, synced_to, live_bytes, live_count = _SEGMENT_ROW.unpack(value)
        return cls(_STATES[state], end, synced_to, live_bytes, live_count, incarnation, bool(suspect))

    @property
    def holds(self) -> bool:
        """Whether its blobs count as present."""
        return self.state is not SegmentState.SWEEPING and not self.suspect


class _Reading:
    """See :meth:`Index.reading`. No generator: that would cost more than most of what is read."""

    __slots__ = ("_env", "_txn")

    def __init__(self, env: lmdb.Environment) -> None:
        self._env = env

    def __enter__(self) -> Transaction:
        try:
            self._txn = self._env.begin()
        except lmdb.Error as failure:
            raise self._unreadable(failure) from failure
        return self._txn

    def __exit__(self, _: object, failure: BaseException | None, __: object) -> None:
        self._txn.abort()
        if isinstance(failure, lmdb.Error):
            raise self._unreadable(failure) from failure

    def _unreadable(self, failure: lmdb.Error) -> NotReady:
        environment.heed(failure, reading=True)
        seldom.say(logging.ERROR, "read", f"the index cannot be read: {failure}")
        return NotReady("the cache cannot be read now: try again in a few seconds")


class Governor(Protocol):
    """Says how far the index may grow."""

    def allowed_within(self, txn: Transaction, path: str) -> int:
        """How long its file may be."""

    def allow_within(self, txn: Transaction, path: str, end_bytes: int, unused_bytes: int) -> None:
        """As ``disk.blocks.Allow``."""

    def rows_at_once(self) -> int:
        """What is larger is done in several transactions."""

    def step_bytes(self) -> int:
        """How much more is allowed at once."""


class Index:
    """The environment and its tables. Read methods open a transaction of their own; methods with ``txn`` use it."""

    def __init__(self, path: str, *, read_only: bool = False, lock: bool = True) -> None:
        """Open or create it.

        Raises:
            lmdb.Error: not an index, or damaged.
        """
        self.path = path
        self.env = open_environment(path, tables=len(_TABLES), sync=False, read_only=read_only, lock=lock)
        try:
            # Each by itself: py-lmdb forgets handles that were opened inside of a read transaction.
            self.blobs, self.segments, self.closures, self.space, self.refused, self.state = (
                self.env.open_db(name, create=not read_only) for name in _TABLES
            )
            self._tables = (self.blobs, self.segments, self.closures, self.space, self.refused, self.state)
            self._blocks = None if read_only else blocks.Blocks(self.env, path)
        except BaseException:
            self.env.close()
            raise
        self._governor: Governor | None = None

    def grow_by(self, governor: "Governor | None") -> None:
        """From now on it grows as far as ``governor`` allows."""
        self._governor = governor

    def rows_at_once(self) -> int:
        """What is larger is done in several transactions."""
        return limits.ROWS_MAX if self._governor is None else self._governor.rows_at_once()

    @contextmanager
    def writing(self, *, rows: int = blocks.ROWS) -> Iterator[Transaction]:
        """A write transaction that changes at most so many rows, or a few more in small tables.

        Raises:
            NoSpace: the quota has no room for what it may need.
            lmdb.Error: it cannot be written.
        """
        with self.env.begin(write=True) as txn:
            self.see_to(txn, rows=rows)
            yield txn

    def see_to(self, txn: Transaction, *, rows: int = blocks.ROWS) -> None:
        """See to it that a write transaction that has just begun may take what it may need.

        Raises:
            NoSpace: the quota has no room for it.
        """
        governor = self._governor
        if governor is not None and self._blocks is not None:
            self._blocks.see_to(
                txn,
                self._tables,
                rows,
                allowed_bytes=governor.allowed_within(txn, self.path),
                allow=lambda *sizes: governor.allow_within(txn, self.path, *sizes),
                step_bytes=governor.step_bytes(),
                most_rows=governor.rows_at_once(),
            )

    def reading(self) -> "_Reading":
        """A read transaction. Never across an ``await``.

        Raises:
            NotReady: the index cannot be read.
        """
        return _Reading(self.env)

    def find(self, txn: Transaction, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The encoded entries of those of ``keys`` that are listed in segments that hold."""
        return self.find_in(txn, keys)[0]

    def find_in(self, txn: Transaction, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], dict[int, SegmentRow]]:
        """The same, and the rows of the segments."""
        with txn.cursor(self.blobs) as cursor:
            found: dict[bytes, bytes] = dict(cursor.getmulti(keys))
        rows, lost = {}, set()
        for number in set(map(_SEGMENT, found.values())):
            row = self.segment(txn, int.from_bytes(number, "little"))
            if row is not None and row.holds:
                rows[int.from_bytes(number, "little")] = row
            else:
                lost.add(number)
        if lost:
            found = {key: value for key, value in found.items() if value[:4] not in lost}
        return found, rows

    def entries(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """The entries of those of ``keys`` that are listed in segments that hold."""
        with self.reading() as txn:
            found = self.find(txn, keys)
        return {key: Entry.decode(value) for key, value in found.items()}

    def segment(self, txn: Transaction, number: int) -> SegmentRow | None:
        """A segment's row."""
        value = txn.get(_NUMBER.pack(number), db=self.segments)
        return None if value is None else SegmentRow.decode(value)

    def put_segment(self, txn: Transaction, number: int, row: SegmentRow) -> None:
        """Write a segment's row."""
        txn.put(_NUMBER.pack(number), row.encode(), db=self.segments)

    def all_segments(self, txn: Transaction) -> Iterator[tuple[int, SegmentRow]]:
        """All segments by number."""
        for key, value in txn.cursor(self.segments):
            yield _NUMBER.unpack(key)[0], SegmentRow.decode(value)

    def close(self) -> None:
        """Close the environment. No transaction may be open."""
        if self._blocks is not None:
            self._blocks.close()
            self._blocks = None
        self.env.close()
