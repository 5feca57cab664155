"""Making segments durable in the background.

The rule: a footer says that all before it is on disk, so it is written after a sync and synced itself; only then does
the index call the segment sealed. A segment whose sync failed is suspect for ever: the kernel reports such a failure
once and then forgets the pages.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from millpond.core import limits
from millpond.disk.group_writer import GroupWriter, Transaction
from millpond.store.index import Index, SegmentRow, SegmentState
from millpond.store.room.space import Space
from millpond.store.room.taken import BLOCK_BYTES
from millpond.store.segments.format import Record, SegmentHeader, footer

log = logging.getLogger(__name__)


class Sealable(Protocol):
    """What is needed of a segment to seal it."""

    descriptor: int
    header: SegmentHeader
    end: int
    sync_begun: int
    records: list[Record]


class Sealer:
    """One thread that syncs and seals."""

    def __init__(self, directory: str, index: Index, index_writer: GroupWriter, space: Space) -> None:
        self._directory = directory
        self._index = index
        self._space = space
        self._index_writer = index_writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sealer")

    def sync_ahead(self, segment: Sealable) -> None:
        """Begin to sync a segment that grew a lot, so that a push waits for the tail only."""
        if segment.end - segment.sync_begun >= limits.SYNC_EVERY_BYTES:
            segment.sync_begun = segment.end
            descriptor = os.dup(segment.descriptor)
            self._begin(descriptor, self._sync, segment.header.number, descriptor, segment.end)

    def seal(self, segment: Sealable) -> None:
        """Seal a full segment and let it go. Nothing may be appended any more."""
        self._begin(segment.descriptor, self._seal, segment)

    def _begin(self, descriptor: int, work: Callable[..., None], *arguments: object) -> None:
        try:
            self._thread.submit(work, *arguments)
        except RuntimeError:
            os.close(descriptor)  # we are closing: a later process goes on with the segment

    def close(self) -> None:
        """Finish what was begun."""
        self._thread.shutdown(wait=True)

    def sync_directory(self) -> None:
        """Make new segments' directory entries durable."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _sync(self, number: int, descriptor: int, end: int) -> None:
        try:
            os.fdatasync(descriptor)
            self.sync_directory()
        except OSError as failure:
            self.suspect(number, failure)
        else:
            # No further than it is listed: what was not is cut off one day, and what follows there then was not synced.
            self._change(number, lambda row: row._replace(synced_to=max(row.synced_to, min(end, row.end))))
        finally:
            os.close(descriptor)

    def _seal(self, segment: Sealable) -> None:
        number, end = segment.header.number, segment.end
        try:
            os.fdatasync(segment.descriptor)
            sealed = _write_footer(segment)
            os.fdatasync(segment.descriptor)
            self.sync_directory()
        except OSError as failure:
            self.suspect(number, failure)
        else:
            state = SegmentState.SEALED if sealed else SegmentState.OPEN
            os.ftruncate(
                segment.descriptor, os.fstat(segment.descriptor).st_size
            )  # gives back what lies behind its end
            taken = os.fstat(segment.descriptor).st_blocks * BLOCK_BYTES if sealed else None
            self._change(number, lambda row: row._replace(state=state, end=end, synced_to=end), taken_bytes=taken)
        finally:
            os.close(segment.descriptor)

    def suspect(self, number: int, failure: Exception) -> None:
        """Never again call what this segment holds durable."""
        log.error("segment %08x could not be made durable and is not trusted any more: %s", number, failure)
        self._change(number, lambda row: row._replace(suspect=True))

    def _change(
        self, number: int, change: Callable[[SegmentRow], SegmentRow], *, taken_bytes: int | None = None
    ) -> None:
        def apply(txn: Transaction) -> None:
            row = self._index.segment(txn, number)
            if row is not None:
                self._index.put_segment(txn, number, change(row))
                if taken_bytes is not None:  # until now it was charged what it might take
                    self._space.takes(txn, number, taken_bytes)

        self._index_writer.run(apply)


def _write_footer(segment: Sealable) -> bool:
    """Whether there was room for it. If not, the segment stays open: it is durable all the same."""
    try:
        _write(segment.descriptor, footer(segment.records, segment.end, segment.header.seed), segment.end)
    except OSError as failure:
        log.warning("segment %08x could not be sealed: %s", segment.header.number, failure)
        os.ftruncate(segment.descriptor, segment.end)
        return False
    return True


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
