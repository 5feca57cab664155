"""The real store: segments, an index, a touch log, and one way to promise a blob.

This module ties the parts together; each part's own module says its rule. What it adds is the *promise*: the one
function behind "present" in FindMissing, behind an upload of what is already held, a served name and a closure walk.
Under the shared side of ``promise.lock`` it looks up entries and appends touch lines; eviction takes the exclusive side
before it lets bytes go, so what was promised stays (I8).
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TypeVar

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import DigestMismatch, MillpondError, NoSpace, NotReady, WouldBlock
from millpond.disk.blocks import ROWS, pieces
from millpond.disk.group_writer import GroupWriter
from millpond.disk.locks import SharedLock
from millpond.store.failures import told
from millpond.store.index import Entry, Index
from millpond.store.interface import Bytes, Footprint, KnownClosure, OpenBlob, Promised
from millpond.store.repository.layout import Layout
from millpond.store.room.ballast import Ballast
from millpond.store.room.growth import Growth
from millpond.store.room.refusals import Refusals
from millpond.store.room.space import Space
from millpond.store.room.waiting import Room
from millpond.store.segments.beginning import TakeNumbers
from millpond.store.segments.durability import Durability, Look
from millpond.store.segments.files import SegmentFiles
from millpond.store.segments.lookup import SegmentLookup
from millpond.store.segments.put_job import PutJob
from millpond.store.segments.sealing import Sealer
from millpond.store.segments.spool import SpooledUpload, Uploads
from millpond.store.segments.writer import SegmentWriter
from millpond.store.uses.counts import Counts
from millpond.store.uses.touch_log import Kind, TouchLog, encoded_bytes

T = TypeVar("T")
log = logging.getLogger(__name__)
_TICK_SECONDS = 0.05
"""Evicted segments are let go this often: until then their blocks do not return."""
_TICKS_PER_FLUSH = 5
_TRIES = 3
"""How often a blob is stored anew that eviction took before it could be promised."""
_TICKS_PER_COUNT = 40
_LATE = 1000
"""Notes that wait for the next log; where there is no room for one, the oldest are let go."""


class SegmentStore:
    """``BlobStore`` and ``Closures`` over one opened repository. Methods may be called from any thread."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        *,
        reserve_bytes: int,
        head_room_max_bytes: int | None = None,
        upkeep_seconds: float = 0.0,
        take_numbers: TakeNumbers,
        clock: Clock,
    ) -> None:
        self.counts = Counts()
        self._index = index
        self._clock = clock
        self._files = SegmentFiles(layout.segments)
        self._promises = SharedLock(layout.promise_lock)
        self._closing = threading.Event()
        self._late: deque[tuple[Kind, list[bytes]]] = deque(maxlen=_LATE)
        space = Space(index, layout, reserve_bytes=reserve_bytes, head_room_max_bytes=head_room_max_bytes)
        growth = Growth(index, space)
        self._end_growth = growth.begin(layout)
        self._index_writer = GroupWriter(
            index.writing, "index-writer", told=lambda failure: told(failure, layout.root), most_rows=index.rows_at_once
        )
        self._touches = TouchLog(
            layout.touch,
            clock,
            log_bytes=lambda: limits.touch_log_bytes(space.quota_bytes),
            make_room=Ballast(layout, growth).give_up,
            grow=growth,
        )
        self._room = Room(space, index, self._index_writer, self._closing, upkeep_seconds=upkeep_seconds)
        growth.wait_in(self._room)
        self._sealer = Sealer(layout.segments, index, self._index_writer, space)
        self._writer = SegmentWriter(
            layout.segments,
            index,
            space,
            self._sealer,
            take_numbers=take_numbers,
            clock=clock,
        )
        self._uploads = Uploads(
            layout.uploads,
            layout.segments,
            self._index_writer,
            self._writer,
            self._room,
            self._sealer,
            clock,
            self._promise_stored,
        )
        self._lookup = SegmentLookup(index, self._files, self._quarantine)
        self._durability = Durability(index, self._index_writer, self._files, self._sealer)
        self._refusals = Refusals(layout.refusals, index, self._index_writer, clock)
        self._ticker = threading.Thread(target=self._tick, name="store-ticker", daemon=True)
        self._ticker.start()

    # -- BlobStore --------------------------------------------------------------------------------------------------

    def find_missing(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Digest]:
        """Those that are not held; the others are promised."""
        if not digests:
            return []  # a probe: it asks whether anybody is there

        def look() -> tuple[list[Digest], Sequence[bytes]]:
            held = self._lookup.held(digests)
            return held, [digest[0] for digest in held]

        held = self._noted(Kind.LEASED, look, wait=wait)
        if len(held) == len(digests):
            return []
        if not held and EMPTY not in digests:
            return list(digests)
        present = {*held, EMPTY}
        return [digest for digest in digests if digest not in present]

    def _noted(self, kind: Kind, look: Callable[[], tuple[T, Sequence[bytes]]], *, wait: bool) -> T:
        """What ``look`` sees, while what it promises by that is noted.

        Room for the note is made while nobody is kept from the lock.
        """
        for may_block in (False, False, wait):
            with self._promises.shared(wait=wait):
                seen, rows = look()
                try:
                    self._touches.append(kind, rows, wait=may_block)
                except WouldBlock:
                    if not wait:
                        raise
                else:
                    return seen
            self._make_way(encoded_bytes(rows))
        raise AssertionError("it has waited")

    def _make_way(self, size_bytes: int) -> None:
        """Wait for room for a note, as for that of a blob. Where there is none in the end, whoever writes it is told so."""
        with suppress(OSError, NoSpace):
            try:
                self._touches.make_way(size_bytes)
            except NoSpace:
                if not self._room.may_come():
                    return None
                with self._room.wish(size_bytes) as wish:
                    while wish.comes_true():
                        with suppress(NoSpace):
                            return self._touches.make_way(size_bytes)

    def put_many(self, blobs: Sequence[tuple[Digest, Bytes]]) -> list[MillpondError | None]:
        """Verify and store."""
        outcomes: list[MillpondError | None] = [
            None if digest.matches(data) else DigestMismatch(f"the bytes sent for blob {digest} are not that blob")
            for digest, data in blobs
        ]
        sound = [blob for blob, outcome in zip(blobs, outcomes, strict=True) if outcome is None and blob[0] != EMPTY]
        if not sound:
            return outcomes
        refused = self._put_and_promise(sound)
        return [outcome or refused.get(blob[0]) for blob, outcome in zip(blobs, outcomes, strict=True)]

    def _put_and_promise(self, blobs: Sequence[tuple[Digest, Bytes]]) -> dict[Digest, MillpondError]:
        """Store; those that are not held in the end.

        Only a look under the promise's lock says "stored": between the writing and the look eviction may have taken a
        blob (found held, say, or in a segment that was full at once), and another writer may have brought one that
        found no room here.
        """
        failures: dict[Digest, MillpondError] = {}
        for _ in range(_TRIES):
            refused = self._put(blobs)
            if refused and self._room.may_come():
                refused = self._put_patiently(blobs, refused)
            missing = set(self.find_missing([digest for digest, _ in blobs]))
            failures.update((digest, why) for digest, why in refused.items() if digest in missing)
            blobs = [blob for blob in blobs if blob[0] in missing and blob[0] not in refused]
            if not blobs:
                break
        return failures | dict.fromkeys((digest for digest, _ in blobs), _taken())

    def _put(self, blobs: Sequence[tuple[Digest, Bytes]]) -> dict[Digest, MillpondError]:
        """Append and list; those that could not be."""
        at_once = self._index.rows_at_once() - ROWS
        refused: dict[Digest, MillpondError] = {}
        for part in pieces(blobs, at_once):
            try:
                refused |= self._index_writer.submit(PutJob(self._writer, part)).result()
            except (NoSpace, NotReady) as failure:
                refused |= dict.fromkeys((digest for digest, _ in part), failure)
        return refused

    def _put_patiently(
        self, blobs: Sequence[tuple[Digest, Bytes]], refused: dict[Digest, MillpondError]
    ) -> dict[Digest, MillpondError]:
        """Wait for room for those that found none, as long as more of them may fit."""
        largest = self._room.space.largest_blob_bytes
        waiting = {
            digest for digest, why in refused.items() if isinstance(why, NoSpace) and digest.size_bytes <= largest
        }
        never = {digest: why for digest, why in refused.items() if digest not in waiting}
        refused = {digest: why for digest, why in refused.items() if digest in waiting}
        if refused:
            with self._room.wish(min(largest, self._writer.room_for(refused))) as wish:
                while refused and wish.comes_true():
                    refused = self._put([blob for blob in blobs if blob[0] in refused])
                    wish.failed(refused.values())
            refused = dict.fromkeys(refused, wish.refusal)
        return refused | never

    def _promise_stored(self, digest: Digest) -> None:
        if self.find_missing([digest]):
            raise _taken()

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
        try:
            return self._uploads.begin(digest, session, offset=offset)
        except OSError as failure:
            raise told(failure) from failure

    def upload_offset(self, session: str) -> int:
        """Where it would go on."""
        return self._uploads.offset(session)

    # -- Closures ---------------------------------------------------------------------------------------------------

    def promise(self, closures: Sequence[Sequence[Digest]], *, leases: bool, wait: bool = True) -> list[Promised]:
        """Each wholly or not at all."""
        wanted = [[digest for digest in digests if digest != EMPTY] for digests in closures]

        def look() -> tuple[list[Look], Sequence[bytes]]:
            looks = self._durability.look(wanted)
            whole = [digests for digests, seen in zip(wanted, looks, strict=True) if not seen.missing]
            return looks, [digest[0] for digests in whole for digest in digests]

        looks = self._noted(Kind.WALKED if leases else Kind.USED, look, wait=wait)
        return [Promised(seen.missing, seen.footprint) for seen in looks]

    def settle(self, digests: Sequence[Digest], *, wait: bool = True) -> Footprint:
        """Make durable, check again, tell where it lies."""
        return self._durability.settle([digest for digest in digests if digest != EMPTY], wait=wait)

    def remember(self, closures: Sequence[KnownClosure], *, ends_leases: bool = False) -> None:
        """Note them; not waited for, because a lost note only costs a walk."""
        self._durability.remember(closures)
        kind = Kind.NAME_BOUND if ends_leases else Kind.NAME_WALKED
        rows = [row + promised_ms.to_bytes(8, "little") for row, _, _, promised_ms in closures]
        try:
            self._touches.append(kind, rows, wait=False)
        except WouldBlock:
            self._late.append((kind, rows))  # nobody relies on it within a tick

    def intact(self, row: bytes, stamp: bytes, *, wait: bool = True) -> bool:
        """Whether it is all there; counts as use, if that can be written: a full disk must not end pulls."""

        def look() -> tuple[bool, Sequence[bytes]]:
            intact = self._durability.intact(row, stamp)
            return intact, [row] if intact else ()

        return self._noted(Kind.NAME_USED, look, wait=wait)

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
        self.counts.damaged += 1
        self._durability.quarantine(digest, entry)

    def _tell_counts(self) -> None:
        news = self.counts.news()
        if news is not None:
            self._touches.append(Kind.COUNTED, [news.encode()])

    def _tick(self) -> None:
        ticks = 0
        while not self._closing.wait(_TICK_SECONDS):
            ticks += 1
            try:
                if not ticks % _TICKS_PER_COUNT:
                    self._tell_counts()
                self._files.drop_departed()
                while self._late:
                    self._touches.append(*self._late.popleft())
                if not ticks % _TICKS_PER_FLUSH:
                    self._touches.flush()
                    self._index_writer.flush()
            except OSError as failure:
                log.warning("the touch log could not be written: %s", failure)

    def close(self) -> None:
        """Finish what waits and let go of everything but the index, whose owner closes it."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._ticker.join()
        self._tell_counts()
        self._sealer.close()
        self._index_writer.close()
        self._writer.close()
        self._promises.close()  # before the log: nothing may be promised that is not noted
        self._touches.close()
        self._end_growth()
        self._refusals.close()
        self._files.close()


def _taken() -> NotReady:
    return NotReady("the cache made room of what it had just stored: try again")
