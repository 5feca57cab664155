"""A segment that is being appended to, as a file.

The rule: a record that could not be written whole leaves the file as it was before it.
"""

import os
from collections.abc import Sequence

from millpond.core.digest import Digest
from millpond.store.index import Entry, SegmentRow
from millpond.store.interface import Bytes
from millpond.store.segments.format import (
    SEGMENT_HEADER_BYTES,
    Damaged,
    Record,
    SegmentHeader,
    checksum_table,
    record_header,
    scan,
    table_checksum,
)

_WRITEV_BUFFERS = 512  # IOV_MAX is 1024


class OpenSegment:
    """A segment that this process appends to."""

    def __init__(self, descriptor: int, header: SegmentHeader, path: str) -> None:
        self.descriptor = descriptor
        self.header = header
        self.path = path
        self.end = SEGMENT_HEADER_BYTES
        self.sync_begun = 0
        self.records: list[Record] = []
        self._waiting: list[Bytes] = []

    def add(self, digest: Digest, data: Bytes) -> Entry:
        """Lay out one record; :meth:`flush` writes it."""
        seed = self.header.seed
        table = checksum_table(data, seed)
        record = Record(digest.key, self.end, digest.size_bytes, table_checksum(table, seed))
        self._waiting += (record_header(digest.key, digest.size_bytes, self.end, seed), data, table)
        return self.added(record)

    def added(self, record: Record) -> Entry:
        """Note a record that is laid out or written."""
        self.records.append(record)
        self.end = record.end
        return Entry(self.header.number, record.offset, record.size_bytes, record.checksum)

    def flush(self) -> None:
        """Write what is laid out.

        Raises:
            OSError: it could not be written; the file was cut back to what was there before.
        """
        at = self.end - sum(map(len, self._waiting))
        try:
            for start in range(0, len(self._waiting), _WRITEV_BUFFERS):
                at += write_all(self.descriptor, self._waiting[start : start + _WRITEV_BUFFERS], at)
        except OSError:
            self.drop()
            raise
        self._waiting = []

    def drop(self) -> None:
        """Forget what is laid out and not wholly written; the file is cut back to what was there before."""
        waiting, self._waiting = self._waiting, []
        self.cut(self.end - sum(map(len, waiting)))

    def cut(self, end: int) -> None:
        """Forget what lies behind ``end``."""
        self.end = end
        while self.records and self.records[-1].offset >= end:
            self.records.pop()
        os.ftruncate(self.descriptor, end)

    def discard(self) -> None:
        """Remove a segment of which nothing will be listed."""
        os.close(self.descriptor)
        os.unlink(self.path)


class WholeSegment:
    """A segment that holds one blob and is complete."""

    def __init__(self, descriptor: int, header: SegmentHeader, record: Record) -> None:
        self.descriptor = descriptor
        self.header = header
        self.end = record.end
        self.sync_begun = record.end
        self.records = [record]


def write_all(descriptor: int, buffers: Sequence[Bytes], offset: int) -> int:
    """Write buffers at ``offset``, all of them. The bytes written."""
    size = sum(map(len, buffers))
    done = os.pwritev(descriptor, buffers, offset)
    if done < size:
        # A short write means a full disk or a signal; the rest says which.
        rest = memoryview(b"".join(buffers))[done:]
        while rest:
            written = os.pwrite(descriptor, rest, offset + size - len(rest))
            rest = rest[written:]
    return size


def continued(descriptor: int, path: str, row: SegmentRow) -> OpenSegment:
    """An abandoned segment, cut at the end that the index knows."""
    header = SegmentHeader.decode(os.pread(descriptor, SEGMENT_HEADER_BYTES, 0))
    segment = OpenSegment(descriptor, header, path)
    records = scan(
        lambda at, size: os.pread(descriptor, size, at),
        header,
        start=SEGMENT_HEADER_BYTES,
        end=row.end,
        verify_data=False,
    )
    for record in records:
        segment.added(record)
    if segment.end != row.end:
        raise Damaged("its records do not reach to the end that the index knows")
    os.ftruncate(descriptor, row.end)
    segment.sync_begun = row.synced_to
    return segment
