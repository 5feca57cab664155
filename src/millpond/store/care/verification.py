"""Reading everything that the index lists, to see whether it still is what it was.

What a read checks is checked here as well (the record names the blob, each MiB matches its checksum), and the blob's own
hash, and that the record would be believed when the index is made anew. The rule: the disk is asked, not the page
cache; and what does not verify is looked up once more before it is called damaged, because eviction may have been
faster than we.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.store.failures import told_of_reading
from millpond.store.index import ENTRY, Entry, Index
from millpond.store.interface import Bytes
from millpond.store.segments.files import SegmentFile, segment_name
from millpond.store.segments.format import (
    RECORD_HEADER_BYTES,
    Damaged,
    parse_record_header,
    record_bytes,
    table_bytes,
    table_checksum,
    verify_chunk,
)
from millpond.store.segments.reading import read_at

_BLOBS_AT_ONCE = 200_000
"""Entries that are held in memory: the index is read once for each so many."""
_ROWS_AT_ONCE = 10_000
_WINDOW_BYTES = 1 * limits.MIB
_GAP_BYTES = 64 * limits.KIB

Listed = tuple[Entry, bytes]
"""An entry and its key, so that they sort by place."""
Found = Callable[[Digest, Entry, str], None]
"""Told of each damaged blob, with what is wrong with it."""


class Step(NamedTuple):
    """A little of the work: what was read for it, and the last segment that is done with."""

    done: int
    blobs: int
    size_bytes: int


def verify(index: Index, segments: str, damaged: Found, *, after: int = 0) -> Iterator[Step]:
    """Verify all blobs in segments with a number above ``after``, by number; about a MiB per step.

    What is uploaded meanwhile may be passed over.

    Raises:
        NotReady: the machine has no means to read now.
    """
    for numbers in _groups(index, after):
        listed: dict[int, list[Listed]] = {number: [] for number in numbers}
        for _ in _collect(index, listed):
            yield Step(after, 0, 0)
        for number in numbers:
            blobs = sorted(listed.pop(number))
            for count, size_bytes in _segment(index, os.path.join(segments, segment_name(number)), blobs, damaged):
                yield Step(after, count, size_bytes)
            after = number
            yield Step(after, 0, 0)


def _groups(index: Index, after: int) -> Iterator[list[int]]:
    """Segments whose blobs are held in memory together."""
    with index.reading() as txn:
        rows = [(number, row.live_count) for number, row in index.all_segments(txn) if number > after and row.holds]
    group: list[int] = []
    blobs = 0
    for number, count in rows:
        if group and blobs + count > _BLOBS_AT_ONCE:
            yield group
            group, blobs = [], 0
        group.append(number)
        blobs += count
    if group:
        yield group


def _collect(index: Index, listed: dict[int, list[Listed]]) -> Iterator[None]:
    """Fill in what the index lists in these segments; a step is one read transaction, so that none is long."""
    after = b""
    while True:
        with index.reading() as txn, txn.cursor(index.blobs) as cursor:
            rows = []
            if cursor.set_range(after + b"\0"):
                for row in cursor:
                    rows.append(row)
                    if len(rows) == _ROWS_AT_ONCE:
                        break
        for (key, _), entry in zip(rows, ENTRY.iter_unpack(b"".join([value for _, value in rows])), strict=True):
            if entry[0] in listed:
                listed[entry[0]].append((Entry._make(entry), key))
        if len(rows) < _ROWS_AT_ONCE:
            return
        after = rows[-1][0]
        yield


def _segment(index: Index, path: str, blobs: Sequence[Listed], damaged: Found) -> Iterator[tuple[int, int]]:
    """Verify one segment's blobs: how many were verified and bytes read, per step."""

    def report(listed: Listed, why: str) -> None:
        entry, key = listed
        if index.entries([key]).get(key) == entry:
            damaged(Digest(key, entry.size_bytes), entry, why)

    if not blobs:
        return
    try:
        file = SegmentFile(path, blobs[0][0].segment)
    except FileNotFoundError:
        for listed in blobs:  # an entry goes before its bytes do (I3): what is still listed was lost
            report(listed, "its segment is gone")
        return
    except (Damaged, OSError) as failure:
        why = told_of_reading(failure) if isinstance(failure, OSError) else failure
        if not isinstance(why, Damaged):
            raise why from failure
        for listed in blobs:
            report(listed, str(why))
        return
    _forget_pages(file)
    for window in _windows(blobs):
        entry = window[0][0]
        if len(window) == 1 and entry.size_bytes > limits.CHUNK_BYTES:
            yield from _large(file, window[0], report)
        else:
            yield len(window), _small(file, window, report)
    _forget_pages(file)


def _forget_pages(file: SegmentFile) -> None:
    """So that the disk is read, and what clients read stays in memory rather than what we read."""
    with suppress(OSError):
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _windows(blobs: Sequence[Listed]) -> Iterator[list[Listed]]:
    """Blobs that one read brings together; one that is larger than a window comes alone."""
    window: list[Listed] = []
    begin = end = 0
    for listed in blobs:
        entry = listed[0]
        entry_end = entry.offset + record_bytes(entry.size_bytes)
        if window and (entry.offset - end > _GAP_BYTES or entry_end - begin > _WINDOW_BYTES):
            yield window
            window = []
        if not window:
            begin = entry.offset
        window.append(listed)
        end = entry_end
    if window:
        yield window


def _small(file: SegmentFile, window: Sequence[Listed], report: Callable[[Listed, str], None]) -> int:
    """Verify what lies in one window; the bytes read."""
    begin = window[0][0].offset
    last = window[-1][0]
    size = last.offset + record_bytes(last.size_bytes) - begin
    try:
        view = read_at(file.descriptor, size, begin, wait=True)
    except Damaged as why:
        if len(window) == 1:
            report(window[0], str(why))
        else:  # which of them is it?
            for listed in window:
                _small(file, [listed], report)
        return size
    for listed in window:
        entry, key = listed
        at = entry.offset - begin
        try:
            _verify_record(view[at : at + record_bytes(entry.size_bytes)], entry, key, file.seed)
        except Damaged as why:
            report(listed, str(why))
    return size


def _verify_record(view: memoryview, entry: Entry, key: bytes, seed: int) -> None:
    data_end = RECORD_HEADER_BYTES + entry.size_bytes
    _verify_header(view[:RECORD_HEADER_BYTES], entry, key, seed)
    data, table = view[RECORD_HEADER_BYTES:data_end], bytes(view[data_end:])
    _verify_table(table, entry, seed)
    for chunk in range(len(table) // 8):
        _verify_chunk(data[chunk * limits.CHUNK_BYTES : (chunk + 1) * limits.CHUNK_BYTES], table, chunk, seed)
    if not Digest(key, entry.size_bytes).matches(data):
        raise Damaged("its bytes are not what its digest says")


def _verify_header(header: Bytes, entry: Entry, key: bytes, seed: int) -> None:
    if parse_record_header(header, entry.offset, seed) != (key, entry.size_bytes):
        raise Damaged("another blob lies in its place")


def _verify_table(table: bytes, entry: Entry, seed: int) -> None:
    if len(table) != table_bytes(entry.size_bytes):
        raise Damaged("it is cut short")
    if table_checksum(table, seed) != entry.checksum:
        raise Damaged("its checksums do not verify")


def _verify_chunk(data: Bytes, table: bytes, chunk: int, seed: int) -> None:
    if not verify_chunk(data, table, chunk, seed):
        raise Damaged("its bytes do not match their checksum")


def _large(file: SegmentFile, listed: Listed, report: Callable[[Listed, str], None]) -> Iterator[tuple[int, int]]:
    """Verify a blob of more than a MiB, chunk by chunk."""
    entry, key = listed
    size = entry.size_bytes
    data_at = entry.offset + RECORD_HEADER_BYTES
    hasher = Digest(key, size).function.hasher()
    try:
        header = read_at(file.descriptor, RECORD_HEADER_BYTES, entry.offset, wait=True)
        _verify_header(header, entry, key, file.seed)
        table = bytes(read_at(file.descriptor, table_bytes(size), data_at + size, wait=True))
        _verify_table(table, entry, file.seed)
        for chunk in range(len(table) // 8):
            at = chunk * limits.CHUNK_BYTES
            data = read_at(file.descriptor, min(limits.CHUNK_BYTES, size - at), data_at + at, wait=True)
            _verify_chunk(data, table, chunk, file.seed)
            hasher.update(data)
            yield 0, len(data)
        if hasher.digest() != key[1:]:
            raise Damaged("its bytes are not what its digest says")
    except Damaged as why:
        report(listed, str(why))
    yield 1, 0
