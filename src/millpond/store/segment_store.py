"""The real store: segments, an index, a touch log, and one way to promise a blob.

This module ties the parts together; each part's own module says its rule. What it adds is the *promise*: the one
function behind "present" in FindMissing, behind an upload of what is already held, a served name and a closure walk.
Under the shared side of ``promise.lock`` it looks up entries and appends touch lines; eviction takes the exclusive side
before it lets bytes go, so what was promised stays (I8).
"""

import logging
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import DigestMismatch, MillpondError, NoSpace, NotReady
from millpond.disk.group_writer import GroupWriter
from millpond.disk.locks import SharedLock
from millpond.store.durability import Durability
from millpond.store.failures import told
from millpond.store.index import Entry, Index
from millpond.store.interface import Bytes, Footprint, OpenBlob
from millpond.store.layout import Layout
from millpond.store.refusals import Refusals
from millpond.store.sealing import Sealer
from millpond.store.segment_files import SegmentFiles
from millpond.store.segment_lookup import SegmentLookup
from millpond.store.segment_writer import PutJob, SegmentWriter, TakeNumbers
from millpond.store.space import Space
from millpond.store.spool import SpooledUpload, Uploads
from millpond.store.touch_log import Kind, TouchLog

log = logging.getLogger(__name__)
_TICK_SECONDS = 0.25


class SegmentStore:
    """``BlobStore`` and ``Closures`` over one opened repository. Methods may be called from any thread."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        *,
        quota_bytes: int,
        reserve_bytes: int,
        take_numbers: TakeNumbers,
        clock: Clock,
    ) -> None:
        self._index = index
        self._clock = clock
        self._files = SegmentFiles(layout.segments)
        self._promises = SharedLock(layout.promise_lock)
        self._touches = TouchLog(layout.touch, clock)
        self._index_writer = GroupWriter(index.env, "index-writer", told=lambda failure: told(failure, layout.root))
        self._space = Space(index, layout.root, quota_bytes=quota_bytes, reserve_bytes=reserve_bytes)
        self._sealer = Sealer(layout.segments, index, self._index_writer)
        self._writer = SegmentWriter(
            layout.segments,
            index,
            self._space,
            self._sealer,
            segment_bytes=limits.segment_bytes(quota_bytes),
            take_numbers=take_numbers,
            clock=clock,
        )
        self._uploads = Uploads(
            layout.uploads,
            layout.segments,
            self._index_writer,
            self._writer,
            self._space,
            self._sealer,
            clock,
            lambda digest: self._promise_stored([digest]),
        )
        self._lookup = SegmentLookup(index, self._files, self._quarantine)
        self._durability = Durability(index, self._index_writer, self._files, self._sealer)
        self._refusals = Refusals(layout.refusals, index, self._index_writer, clock)
        self._closing = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="store-ticker", daemon=True)
        self._ticker.start()

    # -- BlobStore --------------------------------------------------------------------------------------------------

    def find_missing(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Digest]:
        """Those that are not held; the others are promised."""
        with self._promises.shared(wait=wait):
            held = self._lookup.held(digests)
            self._touches.append(Kind.LEASED, [digest[0] for digest in held])
        if len(held) == len(digests):
            return []
        present = {*held, EMPTY}
        return [digest for digest in digests if digest not in present]

    def put_many(self, blobs: Sequence[tuple[Digest, Bytes]]) -> list[MillpondError | None]:
        """Verify and store."""
        outcomes: list[MillpondError | None] = [
            None if digest.matches(data) else DigestMismatch(f"the bytes sent for blob {digest} are not that blob")
            for digest, data in blobs
        ]
        sound = [blob for blob, outcome in zip(blobs, outcomes, strict=True) if outcome is None and blob[0] != EMPTY]
        if not sound:
            return outcomes
        try:
            refused = self._index_writer.submit(PutJob(self._writer, sound)).result()
        except (NoSpace, NotReady) as failure:
            refused = dict.fromkeys((digest for digest, _ in sound), failure)
        if refused:
            for digest in self._lookup.held(list(refused)):
                del refused[digest]  # another writer's, or there before
        self._promise_stored([digest for digest, _ in sound if digest not in refused])
        return [outcome or refused.get(blob[0]) for blob, outcome in zip(blobs, outcomes, strict=True)]

    def _promise_stored(self, digests: Sequence[Digest]) -> None:
        with self._promises.shared(wait=True):
            self._touches.append(Kind.LEASED, [digest.key for digest in digests])

    def read_many(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Bytes | None]:
        """The bytes of each, or None."""
        contents = self._lookup.read_many(digests, wait=wait)
        self._touches.used([digest.key for digest, data in zip(digests, contents, strict=True) if data])
        return contents

    def open(self, digest: Digest, *, wait: bool = True) -> AbstractContextManager[OpenBlob]:
        """One blob, in chunks."""
        opened = self._lookup.open(digest, wait=wait)
        self._touches.used([digest.key])
        return opened

    def begin_upload(self, digest: Digest, session: str, *, offset: int) -> SpooledUpload:
        """Begin or go on with a streamed upload."""
        return self._uploads.begin(digest, session, offset=offset)

    def upload_offset(self, session: str) -> int:
        """Where it would go on."""
        return self._uploads.offset(session)

    # -- Closures ---------------------------------------------------------------------------------------------------

    def settle(self, digests: Sequence[Digest], *, wait: bool = True) -> Footprint:
        """Make durable, check again, tell where it lies."""
        return self._durability.settle([digest for digest in digests if digest != EMPTY], wait=wait)

    def remember(self, row: bytes, stamp: bytes, footprint: Footprint) -> None:
        """Note a closure; not waited for, because a lost note only costs a walk."""
        self._durability.remember(row, stamp, footprint)
        self._touches.append(Kind.NAME_BOUND, [row])

    def intact(self, row: bytes, stamp: bytes, *, wait: bool = True) -> bool:
        """Whether it is all there; counts as use."""
        with self._promises.shared(wait=wait):
            intact = self._durability.intact(row, stamp)
            if intact:
                self._touches.append(Kind.NAME_USED, [row])
        return intact

    def refuse(self, digests: Iterable[Digest]) -> None:
        """Remember that there was no room."""
        self._refusals.add([digest.key for digest in digests])

    def was_refused(self, digests: Iterable[Digest]) -> bool:
        """Whether there was no room of late."""
        return self._refusals.has([digest.key for digest in digests])

    def holds_any(self, digests: Sequence[Digest]) -> bool:
        """Whether one is held; promises nothing."""
        return EMPTY in digests or bool(self._lookup.held(digests))

    # -- life -------------------------------------------------------------------------------------------------------

    def _quarantine(self, digest: Digest, entry: Entry) -> None:
        """What failed its checksum is not served again (I4); the next upload heals it."""
        log.error("blob %s is damaged in segment %08x at %d: it is no longer held", digest, entry.segment, entry.offset)
        self._durability.quarantine(digest, entry)

    def _tick(self) -> None:
        while not self._closing.wait(_TICK_SECONDS):
            try:
                self._touches.flush()
                self._index_writer.flush()
                self._files.drop_unlinked()
            except OSError as failure:
                log.warning("the touch log could not be written: %s", failure)

    def close(self) -> None:
        """Finish what waits and let go of everything but the index, whose owner closes it."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._ticker.join()
        self._sealer.close()
        self._index_writer.close()
        self._writer.close()
        self._touches.close()
        self._promises.close()
        self._refusals.close()
        self._files.close()
