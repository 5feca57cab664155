"""Reading blobs out of segments.

The rule (I4): no MiB leaves before it matched its checksum and its record's header the digest. Blobs that were pushed
together lie together, so a batch is read in runs, one system call each. ``RWF_NOWAIT`` tells what is in the page cache
from what is not: on the event loop only the former is read.
"""

import errno
import operator
import os
from collections.abc import Callable, Iterator, Sequence

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import BlobNotFound, WouldBlock
from millpond.store.failures import told_of_reading
from millpond.store.index import Entry
from millpond.store.interface import Bytes
from millpond.store.segments.files import SegmentFile, SegmentFiles
from millpond.store.segments.format import (
    RECORD_HEADER_BYTES,
    Damaged,
    checksum,
    names_blob,
    record_bytes,
    size_and_hash,
    table_bytes,
    table_checksum,
    verify_chunk,
)

_RUN_BYTES = 1 * limits.MIB
_GAP_BYTES = 8 * limits.KIB
"""A gap this small is cheaper to read over than to seek over."""

Found = tuple[Digest, Entry]
_PLACE = operator.itemgetter(1)  # an entry sorts by segment, then offset
Quarantine = Callable[[Digest, Entry], None]


def read_at(descriptor: int, size: int, offset: int, *, wait: bool) -> memoryview:
    """``size`` bytes at ``offset``, or fewer at the end of the file.

    Raises:
        WouldBlock: they are not in the page cache and ``wait`` is False.
        Damaged: the disk has lost them.
        NotReady: the machine has no means to read them now.
    """
    buffer = bytearray(size)
    view = memoryview(buffer)
    done = 0
    while done < size:
        try:
            got = os.preadv(descriptor, [view[done:]], offset + done, 0 if wait else os.RWF_NOWAIT)
        except OSError as failure:
            # Some file systems do not know the flag; a thread then reads the ordinary way.
            if not wait and failure.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise WouldBlock from None
            raise told_of_reading(failure) from failure
        if not got:
            break
        done += got
    return view[:done]


def read_found(
    files: SegmentFiles, found: Sequence[Found], quarantine: Quarantine, *, wait: bool
) -> tuple[dict[Digest, Bytes], list[Found]]:
    """The verified bytes of blobs that the index has found, and those whose segment is gone: look these up again.

    What fails is left out and handed to ``quarantine``.

    Raises:
        WouldBlock: not in the page cache and ``wait`` is False.
        NotReady: the machine has no means to read them now.
    """
    contents: dict[Digest, Bytes] = {}
    gone: list[Found] = []
    for run in _runs(found):
        begin, last = run[0][1].offset, run[-1][1]
        view, seed = memoryview(b""), 0
        try:
            file = files.get(run[0][1].segment)
            seed = file.seed
            view = read_at(file.descriptor, last.offset + record_bytes(last.size_bytes) - begin, begin, wait=wait)
        except FileNotFoundError:
            gone += run
            continue
        except Damaged:
            if len(run) > 1:  # a bad place on the disk costs the blob that lies there, not its neighbours
                for one in run:
                    alone, lost = read_found(files, [one], quarantine, wait=wait)
                    contents.update(alone)
                    gone += lost
                continue
        for digest, entry in run:
            _, offset, size, wanted = entry
            at = offset - begin + RECORD_HEADER_BYTES
            if size <= limits.CHUNK_BYTES and at + size <= len(view):
                small = view[at : at + size]
                # Written out, because it is done for every blob of every batch.
                if size_and_hash(view, offset - begin) == (size, digest[0][1:]) and checksum(small, seed) == wanted:
                    contents[digest] = small
                    continue
            data = _verified(view, offset - begin, digest, entry, seed)
            if data is None:
                quarantine(digest, entry)
            else:
                contents[digest] = data
    return contents, gone


def _runs(found: Sequence[Found]) -> Iterator[list[Found]]:
    """Blobs that lie so close together that one read brings them all, in file order."""
    run: list[Found] = []
    begin = end = 0
    segment = -1
    for item in sorted(found, key=_PLACE):
        number, offset, size, _ = item[1]
        item_end = offset + record_bytes(size)
        if number != segment or offset - end > _GAP_BYTES or item_end - begin > _RUN_BYTES:
            if run:
                yield run
            run, begin, segment = [], offset, number
        run.append(item)
        end = item_end
    if run:
        yield run


def _verified(view: memoryview, at: int, digest: Digest, entry: Entry, seed: int) -> Bytes | None:
    """The data of a blob of several MiB."""
    size = entry[2]
    data_at = at + RECORD_HEADER_BYTES
    if size <= limits.CHUNK_BYTES or not names_blob(view[at:data_at].tobytes(), digest[0], size):
        return None
    data = view[data_at : data_at + size]
    table = bytes(view[data_at + size : data_at + size + table_bytes(size)])
    if table_checksum(table, seed) != entry.checksum:
        return None
    chunks = range(len(table) // 8)
    sound = all(
        verify_chunk(data[i * limits.CHUNK_BYTES : (i + 1) * limits.CHUNK_BYTES], table, i, seed) for i in chunks
    )
    return data if sound else None


class SegmentBlob:
    """A blob that is read chunk by chunk; keeps its segment's descriptor until it is let go (I5)."""

    def __init__(self, file: SegmentFile, digest: Digest, entry: Entry, quarantine: Quarantine) -> None:
        self._file = file
        self._digest = digest
        self._entry = entry
        self._quarantine = quarantine
        self._table = b""

    def chunk(self, index: int, *, wait: bool = True) -> Bytes:
        """The ``index``-th MiB.

        Raises:
            BlobNotFound: damaged.
            WouldBlock: not in the page cache and ``wait`` is False.
        """
        try:
            return self._chunk(index, wait=wait)
        except Damaged:
            self._quarantine(self._digest, self._entry)
            raise BlobNotFound(f"blob {self._digest} is damaged here and is no longer held") from None

    def _chunk(self, index: int, *, wait: bool) -> Bytes:
        if not self._table:
            self._check_record(wait=wait)
        at = index * limits.CHUNK_BYTES
        length = min(limits.CHUNK_BYTES, self._entry.size_bytes - at)
        data = self._read(self._entry.offset + RECORD_HEADER_BYTES + at, length, wait=wait)
        if len(data) != length or not verify_chunk(data, self._table, index, self._file.seed):
            raise Damaged
        return data

    def _check_record(self, *, wait: bool) -> None:
        entry = self._entry
        header = self._read(entry.offset, RECORD_HEADER_BYTES, wait=wait)
        table_at = entry.offset + RECORD_HEADER_BYTES + entry.size_bytes
        table = bytes(self._read(table_at, table_bytes(entry.size_bytes), wait=wait))
        if not names_blob(header, self._digest.key, entry.size_bytes):
            raise Damaged
        if len(table) != table_bytes(entry.size_bytes) or table_checksum(table, self._file.seed) != entry.checksum:
            raise Damaged
        self._table = table

    def _read(self, offset: int, size: int, *, wait: bool) -> memoryview:
        return read_at(self._file.descriptor, size, offset, wait=wait)
