"""Making the index anew from the segments.

The rule: only what verifies is listed, and what was listed may be called durable. A footer says that all before it is
on disk, so a sealed segment costs one read of its footer; a segment without one is read record by record, data
included, and synced. Of two records of one blob the later one is listed (the higher segment, then the higher offset):
whatever healed or moved a blob wrote it later.

What costs is the order. Digests are random, and a table that gets millions of them in the order of the segments is
written over and over. So entries are sorted into buckets first, by the beginning of their hash, and each bucket is
appended to the table: 5 million in seconds. Buckets are made for part of the hashes at a time, so that memory stays
bounded; footers are read once more for each part.
"""

import logging
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from millpond.core import limits
from millpond.core.errors import RefusedToStart
from millpond.disk.files import sync_directory
from millpond.store.index import Entry, Index, SegmentRow, SegmentState
from millpond.store.segments.files import SegmentFile, segment_name, segment_number
from millpond.store.segments.format import (
    FOOTER_END_BYTES,
    FOOTER_ENTRY_BYTES,
    SEGMENT_HEADER_BYTES,
    Damaged,
    Newer,
    Record,
    footer_begin,
    footer_entries,
    footer_entry,
    footer_places,
    parse_footer,
    record_bytes,
    scan,
)

log = logging.getLogger(__name__)
Holes = Mapping[int, set[int]]
"""Segment numbers to offsets of records that must not be listed again, whatever a footer says."""

_IN_MEMORY = 2_000_000
"""Entries that are sorted in one part; about 65 bytes each."""
_IN_TRANSACTION = 20_000
"""Entries that are listed in one transaction, or a few more: each leaves some pages behind."""
_HASHES = 256
"""Buckets over all parts: one for each first byte of a hash."""
_KEY_BYTES = 33
_NUMBER_BYTES = 4
_HASH_BYTES = _KEY_BYTES - 1
_ENTRY = struct.Struct(f"{FOOTER_ENTRY_BYTES}s")
_ROW = struct.Struct(f"{1 + FOOTER_ENTRY_BYTES + _NUMBER_BYTES}s")
"""Key, the rest of a footer's entry (offset, size, checksum), number of the segment."""
_SIZE = struct.Struct(f"<{_HASH_BYTES + 4}xQ8x")
_PLACE = struct.Struct("<IQ")
_PLAIN_BYTES = record_bytes(1) - 1
"""What a record takes beside its blob, if that is not empty and has one checksum."""


@dataclass(slots=True)
class _Segment:
    """A segment whose records are to be listed."""

    path: str
    row: SegmentRow
    prefix: bytes = b""
    entries: bytes | None = b""
    """As in a footer; None when its footer has them."""
    holes: set[int] = field(default_factory=set)
    live_count: int = 0
    live_bytes: int = 0

    def sound_entries(self, number: int) -> bytes:
        """Its entries without the holes."""
        entries = self.entries
        if entries is None:
            file = SegmentFile(self.path, number)
            encoded, _ = _footer(file, os.fstat(file.descriptor).st_size)
            entries = footer_entries(encoded, file.header)
        if self.holes:
            kept = (entry for (entry,) in _ENTRY.iter_unpack(entries) if _place(entry)[0] not in self.holes)
            entries = b"".join(kept)
        return entries

    def count(self, entries: bytes) -> None:
        """All of these are live, until one proves to be a double."""
        sizes = [size for (size,) in _SIZE.iter_unpack(entries)]
        odd = [size for size in sizes if size > limits.CHUNK_BYTES or not size]
        self.live_count = len(sizes)
        self.live_bytes = sum(sizes) + _PLAIN_BYTES * len(sizes)
        self.live_bytes += sum(record_bytes(size) - size - _PLAIN_BYTES for size in odd)

    def lose(self, size_bytes: int) -> None:
        """One of its blobs is listed elsewhere."""
        self.live_count -= 1
        self.live_bytes -= record_bytes(size_bytes)


def rebuild(index: Index, segments: str, *, holes: Holes | None = None) -> None:
    """List everything that verifies in ``segments`` in the empty ``index``. Nobody else may have either open.

    Raises:
        RefusedToStart: a segment was written by a newer Millpond. Nothing was removed of it.
        OSError: the directory cannot be read or synced.
    """
    found: dict[int, _Segment] = {}
    for number, path in sorted(segment_paths(segments)):
        segment = _judged(number, path, (holes or {}).get(number, set()))
        if segment is not None:
            found[number] = segment
    parts = -(-sum(segment.live_count for segment in found.values()) // _IN_MEMORY) or 1
    for part in range(parts):
        _list_part(index, found, range(_HASHES * part // parts, _HASHES * (part + 1) // parts))
    # A footer may have outlived the sync of the directory; from here on each of these segments counts as durable.
    sync_directory(segments)
    with index.env.begin(write=True) as txn:
        for number, segment in found.items():
            row = segment.row._replace(live_bytes=segment.live_bytes, live_count=segment.live_count)
            index.put_segment(txn, number, row)


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
        encoded, begin = _footer(file, size)
        return parse_footer(encoded, file.header), begin, True
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


def read_places(file: SegmentFile) -> list[tuple[bytes, bytes]]:
    """A segment's records in the order in which they lie, those of copies of a blob too, as ``footer_places`` has them.

    Raises:
        OSError, Damaged: it cannot be read.
    """
    try:
        encoded, _ = _footer(file, os.fstat(file.descriptor).st_size)
        return footer_places(encoded, file.header)
    except Damaged:
        return [(record.key, Entry(0, *record[1:]).encode()[4:]) for record in read_records(file)[0]]


def _footer(file: SegmentFile, size: int) -> tuple[bytes, int]:
    end_of_footer = os.pread(file.descriptor, FOOTER_END_BYTES, max(0, size - FOOTER_END_BYTES))
    begin = footer_begin(end_of_footer, file.seed)
    if not SEGMENT_HEADER_BYTES <= begin <= size:
        raise Damaged("the footer points outside of the segment")
    return os.pread(file.descriptor, size - begin, begin), begin


def _judged(number: int, path: str, holes: set[int]) -> _Segment | None:
    """What a segment holds; None when nothing in it can be verified, ever."""
    try:
        file = SegmentFile(path, number)
        if file.header.number != number:
            raise Damaged(f"it says it is segment {file.header.number:08x}")
        segment = _read(file, path)
        segment.holes = holes
        segment.count(segment.sound_entries(number))
    except Newer as why:
        raise RefusedToStart(
            f"segment {number:08x} was written by a newer Millpond ({why}): upgrade Millpond"
        ) from None
    except Damaged as why:
        log.warning("segment %08x is removed: %s", number, why)
        os.unlink(path)
        return None
    except OSError as failure:
        log.error("segment %08x cannot be read and is left alone: %s", number, failure)
        return _Segment(path, SegmentRow(SegmentState.SEALED, os.stat(path).st_size, suspect=True))
    return segment


def _read(file: SegmentFile, path: str) -> _Segment:
    prefix = bytes([file.header.function])
    try:
        encoded, end = _footer(file, os.fstat(file.descriptor).st_size)
        footer_entries(encoded, file.header)
    except Damaged:
        records, end, _ = read_records(file)
        return _Segment(path, _cut(file.number, path, end), prefix, b"".join(map(footer_entry, records)))
    return _Segment(path, SegmentRow(SegmentState.SEALED, end, synced_to=end), prefix, None)


def _cut(number: int, path: str, end: int) -> SegmentRow:
    """Make what verified of an unsealed segment durable; what follows it is nobody's."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, end)
        os.fdatasync(descriptor)
    except OSError as failure:
        log.error("segment %08x could not be made durable and is not trusted any more: %s", number, failure)
        return SegmentRow(SegmentState.OPEN, end, suspect=True)
    finally:
        os.close(descriptor)
    return SegmentRow(SegmentState.OPEN, end, synced_to=end)


def _list_part(index: Index, found: Mapping[int, _Segment], part: range) -> None:
    """List the blobs whose hashes begin with a byte in ``part``."""
    buckets = [bytearray() for _ in part]
    for number, segment in found.items():
        _distribute(segment, number, part, buckets)
    rows: list[bytes] = []
    for at, bucket in enumerate(buckets):
        rows += _without_doubles(sorted([row for (row,) in _ROW.iter_unpack(bucket)]), found)
        buckets[at] = bytearray()
        if len(rows) >= _IN_TRANSACTION:
            _append(index, rows)
            rows = []
    _append(index, rows)


def _append(index: Index, rows: list[bytes]) -> None:
    entries = ((row[:_KEY_BYTES], row[-_NUMBER_BYTES:] + row[_KEY_BYTES:-_NUMBER_BYTES]) for row in rows)
    with index.env.begin(write=True) as txn, txn.cursor(index.blobs) as cursor:
        cursor.putmulti(entries, append=True)


def _distribute(segment: _Segment, number: int, part: range, buckets: Sequence[bytearray]) -> None:
    collected: list[list[bytes]] = [[] for _ in part]
    first = part.start
    for (entry,) in _ENTRY.iter_unpack(segment.sound_entries(number)):
        if entry[0] in part:
            collected[entry[0] - first].append(entry)
    suffix = number.to_bytes(_NUMBER_BYTES, "little")
    between = suffix + segment.prefix
    for bucket, entries in zip(buckets, collected, strict=True):
        if entries:
            bucket += segment.prefix + between.join(entries) + suffix


def _without_doubles(rows: list[bytes], found: Mapping[int, _Segment]) -> list[bytes]:
    """Of rows that are sorted by key, the latest of each; the segments of the others hold less for it."""
    if len({row[:_KEY_BYTES] for row in rows}) == len(rows):
        return rows
    latest: dict[bytes, bytes] = {}
    for row in rows:
        other = latest.setdefault(row[:_KEY_BYTES], row)
        if other is not row:
            older, newer = sorted((other, row), key=_age)
            latest[row[:_KEY_BYTES]] = newer
            found[_age(older)[0]].lose(_place(older[1:])[1])
    return list(latest.values())


def _age(row: bytes) -> tuple[int, int]:
    """(segment, offset): what was written later is greater."""
    return int.from_bytes(row[-_NUMBER_BYTES:], "little"), _place(row[1:])[0]


def _place(entry: bytes) -> tuple[int, int]:
    """Offset and size in an entry as in a footer."""
    offset, size = _PLACE.unpack_from(entry, _HASH_BYTES)
    return offset, size
