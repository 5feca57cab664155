"""Appending blobs to segments. Runs in the index-writer thread only, so there is nothing to lock.

The rule (I1): bytes are verified before they get here, appended before the index lists them. Each process appends to a
segment of its own, flock'ed while it lives. An open segment whose flock is free is cut at the end that the index knows
and continued by the next process that needs one.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.digest import Digest
from millpond.core.errors import NoSpace, NotReady
from millpond.disk import locks
from millpond.disk.group_writer import Transaction
from millpond.store.index import Entry, Index, SegmentRow, SegmentState
from millpond.store.interface import Bytes
from millpond.store.open_segment import OpenSegment, continued, write_all
from millpond.store.sealing import Sealer
from millpond.store.segment_files import segment_name
from millpond.store.segment_format import (
    RECORD_HEADER_BYTES,
    Damaged,
    Record,
    SegmentHeader,
    checksum_table,
    record_bytes,
    record_header,
    table_checksum,
)
from millpond.store.space import FOOTER_ENTRY_BYTES, Space

log = logging.getLogger(__name__)
TakeNumbers = Callable[[int], Iterable[int]]
_ADOPT_AT_MOST = 8


class Placed(NamedTuple):
    """A blob that was appended and waits for its index entry."""

    digest: Digest
    entry: Entry
    charged_bytes: int


class SegmentWriter:
    """Places blobs. Its public methods are what put jobs call in ``prepare`` and ``apply``."""

    def __init__(
        self,
        directory: str,
        index: Index,
        space: Space,
        sealer: Sealer,
        *,
        segment_bytes: int,
        take_numbers: TakeNumbers,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._index = index
        self._space = space
        self._sealer = sealer
        self._segment_bytes = segment_bytes
        self._take_numbers = take_numbers
        self._clock = clock
        self._numbers: list[int] = []
        self._current: OpenSegment | None = None
        self._claimed_bytes = 0

    # -- in prepare() -----------------------------------------------------------------------------------------------

    def append(self, blobs: Sequence[tuple[Digest, Bytes]]) -> tuple[list[Placed], dict[Digest, NoSpace]]:
        """Append those of ``blobs`` that are not held yet; also says for which there is no room.

        Raises:
            OSError: they could not be written. Nothing counts as appended.
        """
        self._leave_suspect()
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
                placed.append(Placed(digest, segment.add(digest, data), _charge(digest)))
                touched.add(segment)
                if segment is not self._current:
                    self._complete(segment)
        except BaseException:
            if self._current is not None:
                self._current.drop()
            raise
        if self._current in touched:
            assert self._current is not None
            self._current.flush()
            self._sealer.sync_ahead(self._current)
        return placed, refused

    def _claim_for(self, digests: Iterable[Digest]) -> dict[Digest, NoSpace]:
        """Claim room for all, or for each that still fits in its turn; those that do not."""
        refused: dict[Digest, NoSpace] = {}
        claimed = 0
        with suppress(NoSpace):
            self.claim(sum(map(_charge, digests)))
            return refused
        for digest in digests:
            try:
                self.claim(claimed + _charge(digest))
                claimed += _charge(digest)
            except NoSpace as why:
                refused[digest] = why
        return refused

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
        return Placed(digest, entry, _charge(digest))

    def next_number(self) -> int:
        """A segment number that was never used (I9)."""
        while True:
            if not self._numbers:
                self._numbers = sorted(self._take_numbers(limits.NUMBERS_AT_ONCE), reverse=True)
            number = self._numbers.pop()
            # The counter lives with the names: it goes back when somebody restores an older copy of them.
            if not os.path.exists(os.path.join(self._directory, segment_name(number))):
                return number

    def holds(self, digest: Digest) -> bool:
        """Whether the blob needs no place any more."""
        return bool(self._index.entries([digest.key]))

    def fits_in_shared(self, digest: Digest) -> bool:
        """Whether the blob shares a segment with others."""
        return record_bytes(digest.size_bytes) * 4 <= self._segment_bytes

    def claim(self, size_bytes: int) -> None:
        """Make sure that ``size_bytes`` are set aside for appending.

        Raises:
            NoSpace: they are not there.
        """
        if self._claimed_bytes >= size_bytes:
            return
        short = size_bytes - self._claimed_bytes
        ahead = max(short, self._space.step_bytes)
        with self._index.env.begin(write=True) as txn:
            try:
                self._space.claim(txn, ahead)
            except NoSpace:
                ahead = short
                self._space.claim(txn, ahead)
        self._claimed_bytes += ahead

    # -- in apply() -------------------------------------------------------------------------------------------------

    def list_placed(self, txn: Transaction, placed: Sequence[Placed]) -> None:
        """List what was appended; of two writers of one blob the first entry stays, the other record is dead space."""
        index = self._index
        charged = 0
        rows: dict[int, SegmentRow] = {}
        for digest, entry, charge in placed:
            charged += charge
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
        if charged:
            self._space.spend(txn, charged)

    def _put_if_absent(self, txn: Transaction, digest: Digest, entry: Entry) -> bool:
        db = self._index.blobs
        if txn.put(digest.key, entry.encode(), db=db, overwrite=False):
            return True
        if self._index.find(txn, [digest.key]):
            return False
        txn.put(digest.key, entry.encode(), db=db)  # the old entry's segment no longer holds
        return True

    def spent(self, placed: Sequence[Placed]) -> None:
        """The transaction that listed ``placed`` is through."""
        self._claimed_bytes -= sum(item.charged_bytes for item in placed)

    # -- segments ---------------------------------------------------------------------------------------------------

    def _segment_for(self, size: int) -> OpenSegment:
        """Where a record of ``size`` bytes goes: the current segment, or one of its own when it is large."""
        if size * 4 > self._segment_bytes:
            return self._create()
        if self._current is not None and self._current.end + size > self._segment_bytes:
            self._current.flush()
            self._sealer.seal(self._current)
            self._current = None
        if self._current is None:
            self._current = self._adopt(size) or self._create()
        return self._current

    def _leave_suspect(self) -> None:
        """Append no more to a segment that could not be synced: what it holds counts as missing."""
        if self._current is None:
            return
        with self._index.reading() as txn:
            row = self._index.segment(txn, self._current.header.number)
        if row is not None and not row.holds:
            os.close(self._current.descriptor)
            self._current = None

    def _create(self) -> OpenSegment:
        header = SegmentHeader.new(self.next_number(), self._clock())
        path = os.path.join(self._directory, segment_name(header.number))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        locks.try_lock(descriptor, exclusive=True)
        segment = OpenSegment(descriptor, header, path)
        try:
            write_all(descriptor, [header.encode()], 0)
        except OSError:
            segment.discard()
            raise
        return segment

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
            with self._index.env.begin(write=True) as txn:
                self._space.give_back(txn, claimed)
        if self._current is not None:
            os.close(self._current.descriptor)
            self._current = None


def _charge(digest: Digest) -> int:
    return record_bytes(digest.size_bytes) + FOOTER_ENTRY_BYTES


class PutJob:
    """A batch of verified blobs on its way in."""

    def __init__(self, writer: SegmentWriter, blobs: Sequence[tuple[Digest, Bytes]]) -> None:
        self.future: Future[Any] = Future()
        self._writer = writer
        self._blobs = blobs
        self._placed: list[Placed] = []
        self._refused: dict[Digest, NoSpace] = {}

    def prepare(self) -> None:
        """Append."""
        self._placed, self._refused = self._writer.append(self._blobs)

    def apply(self, txn: Transaction) -> dict[Digest, NoSpace]:
        """List; those for which there was no room."""
        self._writer.list_placed(txn, self._placed)
        return self._refused

    def committed(self) -> None:
        """Account."""
        self._writer.spent(self._placed)
