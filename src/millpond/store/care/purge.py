"""Forgetting blobs for good: off the index, and out of the files.

Eviction only lets go of what is not needed; bytes stay in a segment until it is swept. Purging is for what must not be
there any more. It goes: note what is to go; take the entries off the index, raising the segments' incarnations, so that
no closure that held them counts as whole; find every record of these blobs, dead copies too, by reading the headers of
all segments; note where they lie; overwrite their bytes; sync. A record's header stays, because the next record is
found by it, and so does the hash that stands in it.

The rule: (I3) entries go before bytes do. What was begun is finished by whoever comes next, from the file ``purging``;
the file ``purged`` tells a rebuild which records not to list again, as long as their segments exist.
"""

import functools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from millpond.core import json_text, limits
from millpond.core.clock import Clock, wall_clock
from millpond.core.digest import Digest
from millpond.disk import locks
from millpond.disk.blocks import pieces
from millpond.disk.files import sync_directory, write_durably
from millpond.disk.group_writer import GroupWriter, Transaction
from millpond.store.index import Entry, Index
from millpond.store.repository.layout import Layout
from millpond.store.room import holders
from millpond.store.room.costs import CLUSTER_BYTES
from millpond.store.room.growth import Growth
from millpond.store.room.refusals import Refusals
from millpond.store.room.space import Space
from millpond.store.segments.files import SegmentFile
from millpond.store.segments.format import (
    FOOTER_END_BYTES,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Damaged,
    footer_begin,
    parse_footer,
    record_bytes,
    scan,
)
from millpond.store.segments.rebuild import segment_paths

log = logging.getLogger(__name__)
_PENDING, _DONE = "purging", "purged"


class _Place(NamedTuple):
    """A record to be overwritten."""

    segment: int
    offset: int
    size_bytes: int


def holes(root: str) -> dict[int, set[int]]:
    """Segment numbers to the offsets of records that were purged: a rebuild must not list them.

    A file that cannot be read says nothing: what it would have told is found damaged, and is then a miss.
    """
    found: dict[int, set[int]] = {}
    for number, offset in _noted(os.path.join(root, _DONE)):
        found.setdefault(number, set()).add(offset)
    return found


def _noted(path: str) -> list[list[int]]:
    try:
        return list(json_text.parse(Path(path).read_bytes()))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as failure:
        log.error("%s cannot be read: %s", path, failure)
        return []


class Purge:
    """One purge at a time, by whoever holds ``upkeep.lock``."""

    def __init__(
        self, layout: Layout, index: Index, index_writer: GroupWriter, space: Space, *, clock: Clock = wall_clock
    ) -> None:
        self._layout = layout
        self._clock = clock
        self._index = index
        self._index_writer = index_writer
        self._space = space
        self._grow = Growth(index, space, for_eviction=True)
        self._pending_path = os.path.join(layout.root, _PENDING)
        self._done_path = os.path.join(layout.root, _DONE)

    def pending(self) -> set[Digest]:
        """What a purge that was cut off had begun with."""
        try:
            rows = json_text.parse(Path(self._pending_path).read_bytes())
            return {Digest(bytes.fromhex(key), size) for key, size in rows}
        except FileNotFoundError:
            return set()
        except (OSError, ValueError) as failure:
            log.error("%s cannot be read: %s", self._pending_path, failure)
            return set()

    def begin(self, digests: Iterable[Digest]) -> None:
        """Note what is to go, so that it goes whatever happens to us."""
        rows = [[digest.key.hex(), digest.size_bytes] for digest in digests]
        self._write_down(self._pending_path, rows)

    def _write_down(self, path: str, rows: Sequence[list[Any]]) -> None:
        content = json.dumps(rows).encode()
        self._grow(len(content) + CLUSTER_BYTES, lambda: write_durably(path, content))

    def finish(self, digests: Iterable[Digest]) -> int:
        """Make ``digests`` unreadable, then overwrite them; the bytes that were overwritten.

        Raises:
            NoSpace, NotReady, OSError: it is not done; do it again.
        """
        keys = {digest.key for digest in digests}
        self._refuse(sorted(keys))
        self._cut(sorted(keys))
        erased = self._erase(keys)
        self._forget_uploads()
        with suppress(FileNotFoundError):
            os.unlink(self._pending_path)
        sync_directory(self._layout.root)
        return erased

    def _refuse(self, keys: Sequence[bytes]) -> None:
        """A push under way that counted on these must not pass for one whose blobs live elsewhere."""
        refusals = Refusals(self._layout.refusals, self._index, self._index_writer, self._clock)
        try:
            refusals.add(keys)
        finally:
            refusals.close()

    def _cut(self, keys: Sequence[bytes]) -> None:
        for part in pieces(keys, max(1, self._index.rows_at_once() // 2)):
            self._index_writer.run(functools.partial(self._cut_some, keys=part), rows=2 * len(part))

    def _cut_some(self, txn: Transaction, keys: Sequence[bytes]) -> None:
        for key in keys:
            value = txn.pop(key, db=self._index.blobs)
            if value is None:
                continue
            entry = Entry.decode(value)
            row = self._index.segment(txn, entry.segment)
            if row is not None:
                row = row._replace(
                    live_bytes=max(0, row.live_bytes - record_bytes(entry.size_bytes)),
                    live_count=max(0, row.live_count - 1),
                    incarnation=row.incarnation + 1,
                )
                self._index.put_segment(txn, entry.segment, row)

    def _erase(self, keys: set[bytes]) -> int:
        places = list(self._places(keys))
        known = {number for number, _ in segment_paths(self._layout.segments)}
        kept = {(number, offset) for number, offset in _noted(self._done_path) if number in known}
        noted = sorted(kept | {(place.segment, place.offset) for place in places})
        self._write_down(self._done_path, [list(place) for place in noted])
        for number in {place.segment for place in places}:
            self._overwrite(number, [place for place in places if place.segment == number])
        return sum(place.size_bytes for place in places if (place.segment, place.offset) not in kept)

    def _places(self, keys: set[bytes]) -> Iterator[_Place]:
        """Every record of these blobs that is dead: one that the index listed once, or never will.

        What it lists is what somebody has sent again. What lies beyond the end that it knows of a segment is being
        written, or nobody's: it is cut off or written over by whoever goes on with that segment.
        """
        for number, path in segment_paths(self._layout.segments):
            try:
                file = SegmentFile(path, number)
                found = {place for place in _records(file) if place[0] in keys}
            except FileNotFoundError:
                continue  # swept meanwhile
            except (Damaged, OSError) as failure:
                log.error("segment %08x cannot be looked through: %s", number, failure)
                continue
            with self._index.reading() as txn:
                row = self._index.segment(txn, number)
                end = 0 if row is None else row.end
                for key, offset, size_bytes in found:
                    value = txn.get(key, db=self._index.blobs)
                    listed = value is not None and Entry.decode(value)[:2] == (number, offset)
                    if not listed and offset + record_bytes(size_bytes) <= end:
                        yield _Place(number, offset, size_bytes)

    def _overwrite(self, number: int, places: Sequence[_Place]) -> None:
        path = dict(segment_paths(self._layout.segments)).get(number)
        if path is None:
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for place in places:
                at = place.offset + RECORD_HEADER_BYTES
                end = place.offset + record_bytes(place.size_bytes)
                while at < end:
                    at += os.pwrite(descriptor, bytes(min(limits.CHUNK_BYTES, end - at)), at)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def _forget_uploads(self) -> None:
        """Nobody can tell what an unfinished upload holds, so all go that no client is sending."""
        for entry in list(os.scandir(self._layout.uploads)):
            with suppress(FileNotFoundError):
                descriptor = os.open(entry.path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    if locks.try_lock(descriptor, exclusive=True):
                        status = os.fstat(descriptor)
                        row, size = holders.upload(entry.name, status.st_ino), status.st_size
                        for at in range(0, size, limits.CHUNK_BYTES):
                            os.pwrite(descriptor, bytes(min(limits.CHUNK_BYTES, size - at)), at)
                        os.fdatasync(descriptor)
                        os.unlink(entry.path)
                        ended = functools.partial(self._space.end_upload, upload=row, announced_bytes=0)
                        self._index_writer.run(ended)
                finally:
                    os.close(descriptor)


def _records(file: SegmentFile) -> Iterator[tuple[bytes, int, int]]:
    """Key, offset and size of all records of a segment: those in its footer, and those whose headers follow each other."""
    size = os.fstat(file.descriptor).st_size
    with suppress(Damaged):
        begin = footer_begin(os.pread(file.descriptor, FOOTER_END_BYTES, max(0, size - FOOTER_END_BYTES)), file.seed)
        for record in parse_footer(os.pread(file.descriptor, size - begin, begin), file.header):
            yield record.key, record.offset, record.size_bytes
        size = begin
    found = scan(
        lambda at, length: os.pread(file.descriptor, length, at),
        file.header,
        start=SEGMENT_HEADER_BYTES,
        end=size,
        verify_data=False,
    )
    for record in found:
        yield record.key, record.offset, record.size_bytes
