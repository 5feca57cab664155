"""Moving blobs that are to be kept out of a segment that goes.

They are copied to a *forward segment*, which belongs to upkeep and takes in what several segments leave. Pinned blobs
go to one of their own, so that later evictions need not move them again and again.

The rule (I2): a copy is on disk, with its directory entry, before the index points to it; so whoever unlinks the
original later need not ask. A copy that nobody points to yet is nobody's: a successor removes the file.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import lmdb

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.digest import Digest
from millpond.disk.blocks import pieces
from millpond.disk.group_writer import Transaction
from millpond.store.index import Entry, Index, SegmentRow, SegmentState
from millpond.store.interface import Bytes
from millpond.store.room.costs import SEGMENT_EXTRA_BYTES, segment_cost
from millpond.store.room.space import Space
from millpond.store.segments.beginning import NewSegments, TakeNumbers
from millpond.store.segments.files import SegmentFiles
from millpond.store.segments.format import FOOTER_ENTRY_BYTES, SEGMENT_HEADER_BYTES, record_bytes
from millpond.store.segments.open_segment import OpenSegment
from millpond.store.segments.reading import Quarantine, read_found
from millpond.store.segments.sealing import Sealer

_BATCH_BYTES = 4 * limits.MIB


class Moved(NamedTuple):
    """A blob that was copied: where it lay and where its copy lies."""

    key: bytes
    old: Entry
    new: Entry


class Forwarder:
    """Appends to one forward segment after the other. Not for several threads."""

    def __init__(
        self,
        directory: str,
        index: Index,
        space: Space,
        sealer: Sealer,
        *,
        take_numbers: TakeNumbers,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._index = index
        self._space = space
        self._sealer = sealer
        self._new = NewSegments(directory, take_numbers, clock)
        self._current: OpenSegment | None = None
        self._full: list[OpenSegment] = []
        self._is_new = False
        self._claimed_bytes = 0

    def copy(self, files: SegmentFiles, found: Sequence[tuple[bytes, Entry]], quarantine: Quarantine) -> list[Moved]:
        """Copy blobs, in the order in which they lie; durable when this returns, and pointed to by nobody.

        What fails its checksum is handed to ``quarantine`` and not copied (I4).

        Raises:
            NoSpace: the quota has no room for copies. Nothing was copied.
            OSError: they could not be written. Nothing was moved.
        """
        self._claim(found)
        moved: list[Moved] = []
        try:
            for batch in _batches(found):
                blobs = {Digest(key, entry.size_bytes): entry for key, entry in batch}
                contents, _ = read_found(files, list(blobs.items()), quarantine, wait=True)
                for digest, entry in blobs.items():
                    data = contents.get(digest)
                    if data is not None:
                        moved.append(Moved(digest.key, entry, self._add(digest, data)))
                self._flush()
            self._sync()
        except BaseException:
            self.abandon()
            raise
        return moved

    def _claim(self, found: Sequence[tuple[bytes, Entry]]) -> None:
        sizes = [record_bytes(entry.size_bytes) + FOOTER_ENTRY_BYTES for _, entry in found]
        # Two that follow each other are more than one full one.
        segments = 2 + sum(sizes) * 2 // self._space.segment_bytes
        size = sum(sizes) + segments * SEGMENT_EXTRA_BYTES
        with self._index.writing() as txn:
            self._space.claim(txn, size, for_moving=True)
        self._claimed_bytes += size

    def _add(self, digest: Digest, data: Bytes) -> Entry:
        size = record_bytes(digest.size_bytes)
        current = self._current
        if current is not None and current.end + size > max(self._space.segment_bytes, SEGMENT_HEADER_BYTES + size):
            current.flush()
            self._full.append(current)
            self._current = None
        if self._current is None:
            self._current = self._create()
        return self._current.add(digest, data)

    def _flush(self) -> None:
        if self._current is not None:
            self._current.flush()

    def _sync(self) -> None:
        for segment in self._open:
            os.fdatasync(segment.descriptor)
        if self._is_new:
            self._sealer.sync_directory()
            self._is_new = False

    @property
    def _open(self) -> list[OpenSegment]:
        return [*self._full, *([self._current] if self._current is not None else [])]

    def _create(self) -> OpenSegment:
        self._is_new = True
        return self._new.create()

    def point(self, moved: Sequence[Moved]) -> set[bytes]:
        """Let the index point to the copies of those that still lie where they lay; the keys of these."""
        pointed: set[bytes] = set()
        try:
            for some in pieces(moved, self._index.rows_at_once()):
                with self._index.writing(rows=len(some)) as txn:
                    pointed |= self._point(txn, some)
            with self._index.writing() as txn:
                for segment in self._open:  # also where nobody points to what was copied last
                    self._space.takes(txn, segment.header.number, segment_cost(segment.end, len(segment.records)))
                self._space.give_back(txn, self._claimed_bytes)
            self._claimed_bytes = 0
        except BaseException:
            self.abandon()
            raise
        while self._full:
            self._sealer.seal(self._full.pop())
        return pointed

    def _point(self, txn: Transaction, moved: Sequence[Moved]) -> set[bytes]:
        index, pointed = self._index, set()
        rows: dict[int, SegmentRow] = {}
        for key, old, new in moved:
            if txn.get(key, db=index.blobs) != old.encode():
                continue  # damaged, or evicted and uploaded again
            txn.put(key, new.encode(), db=index.blobs)
            pointed.add(key)
            size = record_bytes(new.size_bytes)
            for number, sign in ((old.segment, -1), (new.segment, 1)):
                row = rows.get(number) or index.segment(txn, number) or SegmentRow(SegmentState.OPEN, 0)
                rows[number] = row._replace(
                    live_bytes=max(0, row.live_bytes + sign * size), live_count=max(0, row.live_count + sign)
                )
        ends = {segment.header.number: segment for segment in self._open}
        for number, row in rows.items():
            if (segment := ends.get(number)) is not None:
                row = row._replace(end=segment.end, synced_to=segment.end)
                self._space.takes(txn, number, segment_cost(segment.end, len(segment.records)))
            else:
                # Closures that lie here are walked again: what they need may go elsewhere without this row noticing.
                row = row._replace(incarnation=row.incarnation + 1)
            index.put_segment(txn, number, row)
        return pointed

    def abandon(self) -> None:
        """Let go of what is open, after a failure: what nobody points to is cut off or removed by whoever comes next."""
        for segment in self._open:
            os.close(segment.descriptor)
        self._full, self._current = [], None
        if self._claimed_bytes:
            # Not by writing(): what gives room back must not need any.
            with suppress(lmdb.Error), self._index.env.begin(write=True) as txn:
                self._space.charge_files(txn)
                self._space.give_back(txn, self._claimed_bytes)
                self._claimed_bytes = 0

    def close(self) -> None:
        """Let the current segment go; it is continued or sealed by whoever comes next."""
        self.abandon()


def _batches(found: Sequence[tuple[bytes, Entry]]) -> list[list[tuple[bytes, Entry]]]:
    batches: list[list[tuple[bytes, Entry]]] = []
    size = _BATCH_BYTES
    for item in found:
        if size >= _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(item)
        size += item[1].size_bytes
    return batches
