"""Making the index anew from the segments.

The rule: only what verifies is listed. A footer says that all before it is durable, so sealed segments cost one read of
their footer; a segment without one is read record by record, data included, and ends at the first that does not verify.
"""

import logging
import os
from collections.abc import Iterator

from millpond.core.errors import RefusedToStart
from millpond.disk.group_writer import Transaction
from millpond.store.index import Entry, Index, SegmentRow, SegmentState
from millpond.store.segment_files import SegmentFile, segment_name, segment_number
from millpond.store.segment_format import (
    FOOTER_END_BYTES,
    SEGMENT_HEADER_BYTES,
    Damaged,
    Newer,
    Record,
    footer_begin,
    parse_footer,
    record_bytes,
    scan,
)

log = logging.getLogger(__name__)
_ENTRIES_AT_ONCE = 100_000


def rebuild(index: Index, segments: str) -> None:
    """List everything that verifies in ``segments`` in the empty ``index``. Nobody else may have either open.

    Raises:
        RefusedToStart: a segment was written by a newer Millpond. Nothing was removed of it.
    """
    for number, path in sorted(segment_paths(segments)):
        try:
            file = SegmentFile(path, number)
            if file.header.number != number:
                raise Damaged(f"it says it is segment {file.header.number:08x}")
            records, end, sealed = read_records(file)
        except Newer as why:
            raise RefusedToStart(
                f"segment {number:08x} was written by a newer Millpond ({why}): upgrade Millpond"
            ) from None
        except Damaged as why:
            # Without its header nothing in it can be verified, ever.
            log.warning("segment %08x is removed: %s", number, why)
            os.unlink(path)
            continue
        except OSError as failure:
            log.error("segment %08x cannot be read and is left alone: %s", number, failure)
            unread = SegmentRow(SegmentState.SEALED, os.stat(path).st_size, suspect=True)
            with index.env.begin(write=True) as txn:
                index.put_segment(txn, number, unread)
            continue
        if not sealed:
            # What was not sealed may not be on disk, whatever the page cache says.
            os.truncate(path, end)
        _list(index, number, records, end, sealed=sealed)


def segment_paths(segments: str) -> Iterator[tuple[int, str]]:
    """The number and path of every segment file."""
    with os.scandir(segments) as entries:
        for entry in entries:
            number = segment_number(entry.name)
            if number is not None:
                yield number, os.path.join(segments, segment_name(number))


def read_records(file: SegmentFile) -> tuple[list[Record], int, bool]:
    """A segment's records, where they end, and whether a footer vouches for them.

    Raises:
        OSError: it cannot be read.
    """
    size = os.fstat(file.descriptor).st_size
    try:
        end_of_footer = os.pread(file.descriptor, FOOTER_END_BYTES, max(0, size - FOOTER_END_BYTES))
        begin = footer_begin(end_of_footer, file.seed)
        if not SEGMENT_HEADER_BYTES <= begin <= size:
            raise Damaged("the footer points outside of the segment")
        return parse_footer(os.pread(file.descriptor, size - begin, begin), file.header), begin, True
    except Damaged:
        found = list(
            scan(
                lambda at, length: os.pread(file.descriptor, length, at),
                file.header,
                start=SEGMENT_HEADER_BYTES,
                end=size,
                verify_data=True,
            )
        )
        return found, found[-1].end if found else SEGMENT_HEADER_BYTES, False


def _list(index: Index, number: int, records: list[Record], end: int, *, sealed: bool) -> None:
    for start in range(0, max(1, len(records)), _ENTRIES_AT_ONCE):
        part = records[start : start + _ENTRIES_AT_ONCE]
        with index.env.begin(write=True) as txn:
            _list_part(index, txn, number, part, end, sealed=sealed)


def _list_part(index: Index, txn: Transaction, number: int, records: list[Record], end: int, *, sealed: bool) -> None:
    row = index.segment(txn, number) or SegmentRow(
        SegmentState.SEALED if sealed else SegmentState.OPEN, end, synced_to=end if sealed else 0
    )
    live_bytes = live_count = 0
    for record in records:
        entry = Entry(number, record.offset, record.size_bytes, record.checksum)
        if txn.put(record.key, entry.encode(), db=index.blobs, overwrite=False):
            live_bytes += record_bytes(record.size_bytes)
            live_count += 1
    row = row._replace(live_bytes=row.live_bytes + live_bytes, live_count=row.live_count + live_count)
    index.put_segment(txn, number, row)
