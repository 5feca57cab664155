"""What else there is to do for a store from time to time; each a duty of upkeep.

* The touch logs are merged before they grow large, also when nothing must go.
* Segments that nobody writes any more are sealed, so that they can be evicted and cost no scan when the index is
  rebuilt; and files that never came to be listed are removed. Both wait a minute: a writer may be about to go on.
* Places of dead readers in the environments are given back, or no page that they could see is ever used again.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from millpond.disk import locks
from millpond.disk.blocks import ROWS
from millpond.store.index import Index, SegmentState
from millpond.store.room.space import Space
from millpond.store.segments.format import Damaged
from millpond.store.segments.open_segment import continued
from millpond.store.segments.rebuild import segment_paths
from millpond.store.segments.sealing import Sealer
from millpond.store.uses.merging import Merger

log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5
_MERGE_SECONDS = 10.0
_MERGE_STEP_SECONDS = 0.25
_LOGS_PER_MERGE = 512
"""Logs are merged when they are more than one part in so many of the quota."""
_LEFT_ALONE_SECONDS = 60.0
_ABANDONED_SECONDS = 20.0
_READERS_SECONDS = 30.0


class MergeLogs:
    """A duty: keeps the touch logs few."""

    name = "merging of touch logs"

    def __init__(self, merger: Merger, space: Space) -> None:
        self._merger = merger
        self._space = space
        self._merged_at = float("-inf")

    def run(self) -> float:
        """Merge when it is time."""
        due = time.monotonic() - self._merged_at > _MERGE_SECONDS
        if due or self._merger.waiting_bytes() > self._space.quota_bytes // _LOGS_PER_MERGE:
            begun = time.monotonic()
            self._merger.merge(seconds=_MERGE_STEP_SECONDS)
            if time.monotonic() - begun > _MERGE_STEP_SECONDS:
                return 0.0  # there is more
            self._merged_at = time.monotonic()
        return _LOOK_SECONDS


class Abandoned:
    """A duty: seals what nobody writes any more and removes what never came to be listed."""

    name = "abandoned segments"

    def __init__(self, segments: str, index: Index, space: Space, sealer: Sealer) -> None:
        self._segments = segments
        self._index = index
        self._space = space
        self._sealer = sealer

    def run(self) -> float:
        """Look at every file once."""
        with self._index.reading() as txn:
            rows = dict(self._index.all_segments(txn))
        for number, path in segment_paths(self._segments):
            row = rows.get(number)
            if row is None or (row.state is SegmentState.OPEN and not row.suspect):
                with suppress(FileNotFoundError):
                    if time.time() - os.stat(path).st_mtime > _LEFT_ALONE_SECONDS:
                        self._take(number, path)
        self._free_what_is_gone()
        return _ABANDONED_SECONDS

    def _free_what_is_gone(self) -> None:
        """What is charged, and neither listed nor there: somebody was killed, or could not list it, and removed it."""
        with self._index.reading() as txn:
            gone = [
                number
                for number in self._space.charges(txn)
                if self._index.segment(txn, number) is None and not os.path.exists(self._space.segment_path(number))
            ]
        if gone:
            with self._index.writing(rows=ROWS + len(gone)) as txn:
                for number in gone:  # numbers are never used again (I9)
                    self._space.free(txn, number)

    def _take(self, number: int, path: str) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if not locks.try_lock(descriptor, exclusive=True):
            os.close(descriptor)
            return
        with self._index.reading() as txn:  # once more: whoever held the lock may have listed or sealed it
            row = self._index.segment(txn, number)
        if row is None:
            os.unlink(path)
            os.close(descriptor)
            log.info("segment %08x was never finished and is removed", number)
        elif row.state is SegmentState.OPEN:
            try:
                self._sealer.seal(continued(descriptor, path, row))
            except Damaged as why:
                os.close(descriptor)
                log.warning("segment %08x cannot be sealed: %s", number, why)
        else:
            os.close(descriptor)


class ReaderSlots:
    """A duty: gives back the places of readers that died."""

    name = "places of dead readers"

    def __init__(self, checks: Sequence[Callable[[], int]]) -> None:
        self._checks = checks

    def run(self) -> float:
        """Look through all environments."""
        for check in self._checks:
            check()
        return _READERS_SECONDS
