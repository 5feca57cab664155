"""Appending blobs to segments. Runs in the index-writer thread only, so there is nothing to lock.

The rule (I1): bytes are verified before they get here, appended before the index lists them. Each process appends to a
segment of its own, flock'ed while it lives. An open segment whose flock is free is cut at the end that the index knows
and continued by the next process that needs one.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.digest import Digest
from millpond.core.errors import MillpondError, NoSpace, NotReady
from millpond.disk import locks
from millpond.disk.group_writer import Transaction
from millpond.store.index import Entry, Index, SegmentRow, SegmentState
from millpond.store.interface import Bytes
from millpond.store.room.costs import INDEX_BYTES, SEGMENT_EXTRA_BYTES, cost_of_blobs, segment_cost
from millpond.store.room.space import Space
from millpond.store.segments.beginning import NewSegments, TakeNumbers
from millpond.store.segments.files import segment_name
from millpond.store.segments.format import (
    FOOTER_ENTRY_BYTES,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Damaged,
    Record,
    checksum_table,
    record_bytes,
    record_header,
    table_checksum,
)
from millpond.store.segments.open_segment import OpenSegment, continued, write_all
from millpond.store.segments.sealing import Sealer

log = logging.getLogger(__name__)
_ADOPT_AT_MOST = 8


class Placed(NamedTuple):
    """A blob that was appended and waits for its index entry."""

    digest: Digest
    entry: Entry
    cost_bytes: int
    """What its segment takes with it, once that has its footer."""


class Appended(NamedTuple):
    """What became of a batch."""

    placed: list[Placed]
    refused: dict[Digest, NoSpace]
    """For which there is no room."""
    room_bytes: int
    """What is claimed for it until it is listed or forsaken."""


class SegmentWriter:
    """Places blobs. Its public methods are what put jobs call in ``prepare`` and ``apply``."""

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
        self._claimed_bytes = self._under_way_bytes = 0
        self._under_way = 0
        """Jobs that have appended something which is not listed yet."""
        self._unlisted: set[int] = set()
        """Segments with records that will not be listed."""
        self._segment_bytes = space.segment_bytes

    # -- in prepare() -----------------------------------------------------------------------------------------------

    def append(self, blobs: Sequence[tuple[Digest, Bytes]]) -> Appended:
        """Append those of ``blobs`` that are not held yet and find room.

        Raises:
            OSError: they could not be written. Nothing counts as appended.
        """
        self._leave_suspect()
        self._segment_bytes = self._space.segment_bytes
        held = self._index.entries([digest.key for digest, _ in blobs])
        fresh = {digest: data for digest, data in blobs if digest.key not in held}
        refused = self._claim_for(fresh)
        for digest in refused:
            del fresh[digest]
        placed: list[Placed] = []
        touched: set[OpenSegment] = set()
        try:
            for digest, data in fresh.items():
                segment = self._segment_for(record_bytes(digest.size_bytes))
                placed.append(_placed(digest, segment.add(digest, data), segment))
                touched.add(segment)
                if segment is not self._current:
                    self._complete(segment)
            if self._current in touched:
                assert self._current is not None
                self._current.flush()
                self._sealer.sync_ahead(self._current)
        except BaseException:
            self._unlisted |= {one.entry.segment for one in placed}
            if self._current is not None:
                self._current.drop()
            self._remove_unlisted()
            raise
        self._under_way += 1
        room_bytes = self.room_for(fresh)
        self._under_way_bytes += room_bytes  # others of the same transaction must not rely on it
        return Appended(placed, refused, room_bytes)

    def _claim_for(self, digests: Iterable[Digest]) -> dict[Digest, NoSpace]:
        """Claim room for all, or for each that still fits in its turn; those that do not."""
        try:
            self.claim(self.room_for(digests))
        except NoSpace as why:
            return dict.fromkeys(self._those_without_room(digests), why)
        return {}

    def _those_without_room(self, digests: Iterable[Digest]) -> list[Digest]:
        """Claim room for those that fit, one after the other; the rest."""
        fitting: list[Digest] = []
        rest: list[Digest] = []
        for _ in range(2):
            fitting, rest = self._fitting(digests)
            with suppress(NoSpace):  # somebody was quicker, or the index has grown since
                self.claim(self.room_for(fitting))
                return rest
        return fitting + rest

    def _fitting(self, digests: Iterable[Digest]) -> tuple[list[Digest], list[Digest]]:
        """Those that fit, one after the other, and the rest."""
        with self._index.reading() as txn:
            left = self._claimed_bytes - self._under_way_bytes + self._space.left_bytes(txn)
        fitting: list[Digest] = []
        rest: list[Digest] = []
        left -= 2 * SEGMENT_EXTRA_BYTES
        per_byte = SEGMENT_EXTRA_BYTES * 4 / (3 * self._segment_bytes)
        for digest in digests:  # as room_for(), one by one
            size = record_bytes(digest.size_bytes)
            extra = SEGMENT_EXTRA_BYTES if size * 4 > self._segment_bytes else int(size * per_byte) + 1
            size += FOOTER_ENTRY_BYTES + INDEX_BYTES + extra
            if size <= left:
                left -= size
                fitting.append(digest)
            else:
                rest.append(digest)
        return fitting, rest

    def room_for(self, digests: Iterable[Digest]) -> int:
        """The most that appending these may take."""
        return cost_of_blobs([digest.size_bytes for digest in digests], self._space.segment_bytes)

    def room_for_file(self, digest: Digest) -> int:
        """The most that an upload's file may take and, where its blob shares a segment, the copy of it."""
        alone = segment_cost(SEGMENT_HEADER_BYTES + record_bytes(digest.size_bytes), 1)
        return alone + (self.room_for([digest]) if self.fits_in_shared(digest) else INDEX_BYTES)

    def _complete(self, segment: OpenSegment) -> None:
        """Write a segment that holds one blob."""
        try:
            segment.flush()
        except OSError:
            segment.discard()
            raise
        self._sealer.seal(segment)

    def append_file(self, descriptor: int, offset: int, digest: Digest) -> Placed:
        """Append one blob whose bytes lie in a file; copied MiB by MiB. Its room was claimed by its upload."""
        self._leave_suspect()
        self._segment_bytes = self._space.segment_bytes
        segment = self._segment_for(record_bytes(digest.size_bytes))
        seed, begin = segment.header.seed, segment.end
        table = bytearray()
        at = begin + RECORD_HEADER_BYTES
        try:
            for start in range(0, digest.size_bytes, limits.CHUNK_BYTES):
                chunk = os.pread(descriptor, min(limits.CHUNK_BYTES, digest.size_bytes - start), offset + start)
                table += checksum_table(chunk, seed)
                at += write_all(segment.descriptor, [chunk], at)
            write_all(segment.descriptor, [bytes(table)], at)
            header = record_header(digest.key, digest.size_bytes, begin, seed)
            write_all(segment.descriptor, [header], begin)
        except OSError:
            segment.drop()
            raise
        entry = segment.added(Record(digest.key, begin, digest.size_bytes, table_checksum(bytes(table), seed)))
        self._sealer.sync_ahead(segment)
        self._under_way += 1
        return _placed(digest, entry, segment)

    def next_number(self) -> int:
        """A segment number that was never used (I9)."""
        return self._new.next_number()

    def holds(self, digest: Digest) -> bool:
        """Whether the blob needs no place any more."""
        return bool(self._index.entries([digest.key]))

    def fits_in_shared(self, digest: Digest) -> bool:
        """Whether the blob shares a segment with others."""
        return record_bytes(digest.size_bytes) * 4 <= self._space.segment_bytes

    def claim(self, size_bytes: int) -> None:
        """Make sure that ``size_bytes`` are set aside for what is appended next.

        Raises:
            NoSpace: they are not there.
        """
        short = size_bytes - (self._claimed_bytes - self._under_way_bytes)
        if short <= 0:
            return
        ahead = max(short, self._space.step_bytes)
        with self._index.writing() as txn:
            try:
                self._space.claim(txn, ahead)
            except NoSpace:
                ahead = short
                self._space.claim(txn, ahead)
        self._claimed_bytes += ahead

    def _remove_unlisted(self) -> None:
        """Cut off what was appended and will not be listed, as soon as nothing is under way that may be listed behind it.

        Such a segment is left: what is being synced of it may yet say that more of it is durable.
        """
        if self._under_way or not self._unlisted:
            return
        with suppress(OSError, MillpondError):  # else with what comes next
            with self._index.reading() as txn:
                rows = {number: self._index.segment(txn, number) for number in self._unlisted}
            for number, row in rows.items():
                left = self._current if self._current and self._current.header.number == number else None
                if row is None:
                    with suppress(FileNotFoundError):
                        os.unlink(os.path.join(self._directory, segment_name(number)))
                if left is not None:
                    self._current = None
                    self._let_go(left, row)
                self._unlisted.discard(number)

    def _let_go(self, segment: OpenSegment, row: SegmentRow | None) -> None:
        if row is None:
            os.close(segment.descriptor)
            return
        try:
            segment.cut(row.end)
        except OSError:
            os.close(segment.descriptor)
            raise
        self._sealer.seal(segment)

    # -- in apply() -------------------------------------------------------------------------------------------------

    def list_placed(self, txn: Transaction, placed: Sequence[Placed]) -> int:
        """List what was appended; of two writers of one blob the first entry stays, the other record is dead space.

        By how many bytes that makes its segments larger; who set them aside must give them back.
        """
        index = self._index
        rows: dict[int, SegmentRow] = {}
        costs: dict[int, int] = {}
        for digest, entry, cost_bytes in placed:
            costs[entry.segment] = max(cost_bytes, costs.get(entry.segment, 0))
            row = rows.get(entry.segment) or index.segment(txn, entry.segment) or SegmentRow(SegmentState.OPEN, 0)
            if not row.holds:
                raise NotReady("the cache could not write to its disk: try again, and tell its maintainer")
            end = max(row.end, entry.offset + record_bytes(entry.size_bytes))
            if self._put_if_absent(txn, digest, entry):
                row = row._replace(
                    live_bytes=row.live_bytes + record_bytes(entry.size_bytes), live_count=row.live_count + 1
                )
            rows[entry.segment] = row._replace(end=end)
        for number, row in rows.items():
            index.put_segment(txn, number, row)
        return sum(self._space.takes(txn, number, cost_bytes) for number, cost_bytes in costs.items())

    def _put_if_absent(self, txn: Transaction, digest: Digest, entry: Entry) -> bool:
        db = self._index.blobs
        if txn.put(digest.key, entry.encode(), db=db, overwrite=False):
            return True
        if self._index.find(txn, [digest.key]):
            return False
        txn.put(digest.key, entry.encode(), db=db)  # the old entry's segment no longer holds
        return True

    def spend(self, txn: Transaction, size_bytes: int) -> None:
        """Segments take now what was claimed for them; :meth:`spent` when the transaction is through."""
        self._space.give_back(txn, size_bytes)

    def spent(self, size_bytes: int, appended: Appended) -> None:
        """The transaction is through."""
        self._claimed_bytes -= size_bytes
        self._under_way_bytes -= appended.room_bytes
        self.ended([])

    def forsake(self, appended: Appended) -> None:
        """There will be none: it is not listed."""
        self._under_way_bytes -= appended.room_bytes
        self.ended(appended.placed)

    def ended(self, unlisted: Sequence[Placed]) -> None:
        """What one job appended is listed, but for this."""
        self._under_way -= 1
        self._unlisted |= {one.entry.segment for one in unlisted}
        self._remove_unlisted()

    # -- segments ---------------------------------------------------------------------------------------------------

    def _segment_for(self, size: int) -> OpenSegment:
        """Where a record of ``size`` bytes goes: the current segment, or one of its own when it is large."""
        if size * 4 > self._segment_bytes:
            return self._new.create()
        if self._current is not None and self._current.end + size > self._segment_bytes:
            self._current.flush()
            self._sealer.seal(self._current)
            self._current = None
        if self._current is None:
            self._current = self._adopt(size) or self._new.create()
        return self._current

    def _leave_suspect(self) -> None:
        """Append no more to a segment that could not be synced: what it holds counts as missing."""
        if self._current is not None:
            with self._index.reading() as txn:
                row = self._index.segment(txn, self._current.header.number)
            if row is not None and not row.holds:
                os.close(self._current.descriptor)
                self._current = None

    def _adopt(self, size: int) -> OpenSegment | None:
        """An open segment that nobody writes any more, if one has room for ``size``."""
        with self._index.reading() as txn:
            open_ones = [
                number for number, row in self._index.all_segments(txn) if row.state is SegmentState.OPEN and row.holds
            ]
        for number in open_ones[:_ADOPT_AT_MOST]:
            segment = self._take_over(number)
            if segment is None:
                continue
            if segment.end + size <= self._segment_bytes:
                return segment
            self._sealer.seal(segment)
        return None

    def _take_over(self, number: int) -> OpenSegment | None:
        path = os.path.join(self._directory, segment_name(number))
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if not locks.try_lock(descriptor, exclusive=True):
            os.close(descriptor)
            return None
        with self._index.reading() as txn:
            row = self._index.segment(txn, number)
        try:
            if row is None or row.state is not SegmentState.OPEN:
                raise Damaged("sealed meanwhile")
            return continued(descriptor, path, row)
        except Damaged as why:
            log.info("segment %08x is not continued: %s", number, why)
            os.close(descriptor)
            return None

    def close(self) -> None:
        """Give claims back and let the current segment go; the next process continues it."""
        if self._claimed_bytes:
            claimed, self._claimed_bytes = self._claimed_bytes, 0
            # Where the quota has no room to write that, they return because we have ended.
            with suppress(NoSpace), self._index.writing() as txn:
                self._space.give_back(txn, claimed)
        if self._current is not None:
            os.close(self._current.descriptor)
            self._current = None


def _placed(digest: Digest, entry: Entry, segment: OpenSegment) -> Placed:
    return Placed(digest, entry, segment_cost(segment.end, len(segment.records)))
