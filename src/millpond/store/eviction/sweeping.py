"""Taking segments away: the protocol of eviction, step by step, each of which may be the last.

1. **Move.** What is to be kept (used after the horizon, leased, pinned) is copied to a forward segment, which is synced;
   then the entries that still point here point there.
2. **Mark.** Under the exclusive side of ``promise.lock`` the touch logs are read to their ends. If something that
   would go was used or promised meanwhile, itself or through a name, the segment is let go, or 1 is done again; else it
   is *sweeping* from now on, which is as good as missing for whoever looks.
3. **Delete** the entries that still point here, a thousand per transaction (I3).
4. **Hide** the file, and forget the segment; its bytes go when nobody reads them any more.

Steps 3 and 4 are done for several marked segments together: each transaction writes every page of the index that it
touches, and a thousand blobs of one segment touch nearly as many pages as all blobs of five.

Whoever comes after a kill finds copies that nobody points to (removed), or a sweeping segment (finished).

The rule (I8): nothing goes that was promised before it was marked.
"""

import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Mapping
from enum import Enum, auto
from typing import NamedTuple

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.errors import NotReady
from millpond.disk import locks
from millpond.disk.group_writer import Transaction
from millpond.store.care.quarantine import quarantine
from millpond.store.eviction.census import created_ms
from millpond.store.eviction.forwarding import Forwarder
from millpond.store.eviction.horizon import COPIED_PER_FREED, EVERYTHING_MS
from millpond.store.eviction.promise_lock import LOCK_STEP_SECONDS, LOCK_TRIES, PromiseLock
from millpond.store.index import ENTRY, Entry, Index, SegmentRow, SegmentState
from millpond.store.repository.layout import Layout
from millpond.store.room.departing import Departing
from millpond.store.room.refusals import doubt_everything
from millpond.store.segments.closure_rows import places_of
from millpond.store.segments.files import SegmentFile, SegmentFiles, segment_name
from millpond.store.segments.format import Damaged, record_bytes
from millpond.store.segments.rebuild import read_keys
from millpond.store.uses.merging import TouchReader
from millpond.store.uses.table import Uses
from millpond.store.uses.use import Use

log = logging.getLogger(__name__)
_TRIES = 3
_AT_ONCE = 1000
"""Blobs deleted in one transaction: writers wait for it, and each may take a page more before that is measured."""
_MARKED_AT_ONCE = 2_500
"""Blobs in marked segments that are not deleted yet."""

Listed = list[tuple[bytes, Entry]]


class Rule(NamedTuple):
    """What may go."""

    horizon_ms: int
    """Whatever was used before, unless it is pinned or leased."""
    lease_floor_ms: int
    """Leases that last longer protect."""
    copied_per_freed: float = COPIED_PER_FREED

    @property
    def is_everything(self) -> bool:
        """Promises do not count either."""
        return self.lease_floor_ms >= EVERYTHING_MS


EVERYTHING = Rule(EVERYTHING_MS, EVERYTHING_MS, float("inf"))


class End(Enum):
    """How it ended for a segment."""

    GONE = auto()
    LET_GO = auto()
    """It was used meanwhile, or gives too little for what would be copied."""


class Swept(NamedTuple):
    """What became of one segment. Sizes in bytes."""

    end: End
    freed_bytes: int = 0
    copied_bytes: int = 0
    blobs: int = 0
    """How many are no longer held."""
    youngest_ms: int = 0
    """When the youngest of them was last used."""


class Sweeper:
    """Evicts segments, one at a time. Used by whoever holds ``upkeep.lock``."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        uses: Uses,
        departing: Departing,
        promises: PromiseLock,
        forwarders: tuple[Forwarder, Forwarder],
        *,
        clock: Clock,
    ) -> None:
        """``forwarders``: for what is kept because it is used, and for what is pinned."""
        self._clock = clock
        self._layout = layout
        self._index = index
        self._uses = uses
        self._departing = departing
        self._promises = promises
        self._for_used, self._for_pinned = forwarders
        self._files = SegmentFiles(layout.segments)
        self._marked: dict[int, Listed] = {}

    def sweep(self, number: int, rule: Rule, touches: TouchReader) -> Swept:
        """Take segment ``number`` away, if it still is what it was chosen for; its room returns with :meth:`remove`.

        Raises:
            OSError, lmdb.Error: the disk refused something. Whatever was done is a state that a successor goes on from.
            NotReady: ``promise.lock`` was not to be had.
        """
        with self._index.reading() as txn:
            row = self._index.segment(txn, number)
        if row is None or not (row.state is SegmentState.SEALED or row.suspect):
            return Swept(End.LET_GO)
        if row.state is SegmentState.OPEN and self._is_written(number):
            return Swept(End.LET_GO)  # suspect; its writer leaves it at the next upload
        file_bytes = self._size(number)
        copied = 0
        for _ in range(_TRIES):
            going, kept, youngest_ms = self._sorted_out(number, row, rule, touches)
            kept_bytes = sum(record_bytes(entry.size_bytes) for _, entry in kept)
            copied_per_freed = rule.copied_per_freed if going else COPIED_PER_FREED
            freed_bytes = file_bytes - copied - kept_bytes
            if kept_bytes and (freed_bytes <= 0 or copied + kept_bytes > copied_per_freed * freed_bytes):
                break
            self._move(kept)
            copied += kept_bytes
            if self._mark(number, going, rule, touches):
                self._marked[number] = going
                if sum(map(len, self._marked.values())) >= _MARKED_AT_ONCE:
                    self.remove()
                return Swept(End.GONE, file_bytes - copied, copied, len(going), youngest_ms)
        return Swept(End.LET_GO, copied_bytes=copied)

    @property
    def has_marked(self) -> bool:
        """Whether something was swept that is not removed yet."""
        return bool(self._marked)

    def remove(self) -> None:
        """See to it that what was swept is gone.

        Raises:
            OSError, lmdb.Error: the disk refused something; :meth:`finish` goes on from there.
        """
        marked, self._marked = self._marked, {}
        if marked:
            self._delete(marked)
            self._hide(marked)

    def finish(self) -> int:
        """Go on with what a killed predecessor was sweeping, or we when something failed; how many segments that were."""
        self._marked.clear()
        with self._index.reading() as txn:
            numbers = [number for number, row in self._index.all_segments(txn) if row.state is SegmentState.SWEEPING]
        for number in numbers:
            self._delete({number: self._listed(number)})
            self._hide([number])
        return len(numbers)

    def drop_listed(self, number: int) -> int:
        """Take all but pins off the index that lies in a segment which is still written; how many blobs that were."""
        listed = self._listed(number)
        pinned = self._uses.pinned_of([key for key, _ in listed])
        going = [item for item in listed if item[0] not in pinned]
        self._break_promises(EVERYTHING_MS)
        self._delete_listed({number: going}, lost=True)
        return len(going)

    # -- 1: what is to be kept --------------------------------------------------------------------------------------

    def _sorted_out(self, number: int, row: SegmentRow, rule: Rule, touches: TouchReader) -> tuple[Listed, Listed, int]:
        """What goes and what is kept of a segment, in the order in which it lies, and the last use of what goes."""
        listed = self._listed(number)
        if row.suspect:
            return listed, [], 0
        keys = sorted([key for key, _ in listed])  # neighbours in a table are looked up together
        uses = self._uses.of(keys)
        pinned = self._uses.pinned_of(keys)
        touched: set[bytes] = set() if rule.is_everything else touches.read().keys
        unknown = Use(created_ms(self._layout.segments, number))
        going: Listed = []
        kept: Listed = []
        youngest_ms = leased_ms = 0
        for key, entry in listed:
            time_ms, lease_ms, _ = uses.get(key, unknown)
            if key in pinned or time_ms >= rule.horizon_ms or lease_ms > rule.lease_floor_ms or key in touched:
                kept.append((key, entry))
            else:
                going.append((key, entry))
                youngest_ms = max(youngest_ms, time_ms)
                leased_ms = max(leased_ms, lease_ms)
        # By order everything goes, also what was leased since the logs were merged.
        self._break_promises(EVERYTHING_MS if rule.is_everything and going else leased_ms)
        return going, kept, youngest_ms

    def _break_promises(self, leased_until_ms: int) -> None:
        """Where leased blobs go (beyond what leases may hold, or all by order), the push they were leased for will fail.

        It must fail, and not be taken for one whose blobs live elsewhere: that is asked of the memory of refusals.
        """
        now = self._clock()
        if leased_until_ms > now:
            doubt_everything(self._layout.refusals, now + limits.REFUSED_MS)

    def _listed(self, number: int) -> Listed:
        """What the index lists in a segment."""
        try:
            keys = read_keys(SegmentFile(self._path(number), number))
        except (OSError, Damaged):
            return self._listed_slowly(number)
        with self._index.reading() as txn, txn.cursor(self._index.blobs) as cursor:
            found = cursor.getmulti(sorted(set(keys)))
        here = number.to_bytes(4, "little")
        listed = [(key, Entry.decode(value)) for key, value in found if value[:4] == here]
        return sorted(listed, key=lambda item: item[1].offset)

    def _listed_slowly(self, number: int) -> Listed:
        """The same, for a segment that cannot tell: all of the index is looked through."""
        wanted = number.to_bytes(4, "little")
        with self._index.reading() as txn, txn.cursor(self._index.blobs) as cursor:
            return [(key, Entry.decode(value)) for key, value in cursor if value[:4] == wanted]

    def _move(self, kept: Listed) -> None:
        if not kept:
            return
        pinned = self._uses.pinned_of([key for key, _ in kept])
        for forwarder, part in (
            (self._for_pinned, [item for item in kept if item[0] in pinned]),
            (self._for_used, [item for item in kept if item[0] not in pinned]),
        ):
            if part:
                forwarder.point(forwarder.copy(self._files, part, self._quarantine))

    def _quarantine(self, digest: "tuple[bytes, int]", entry: Entry) -> None:
        log.error("blob %s is damaged in segment %08x: it is no longer held", digest[0][1:].hex(), entry.segment)
        with self._index.env.begin(write=True) as txn:
            quarantine(self._index, self._layout.segments, txn, digest[0], entry)

    # -- 2: the last look -------------------------------------------------------------------------------------------

    def _mark(self, number: int, going: Listed, rule: Rule, touches: TouchReader) -> bool:
        """Mark it sweeping, unless something in it was used or promised up to now."""
        keys = {key for key, _ in going}
        for _ in range(LOCK_TRIES):
            touches.read()  # most of what came since, so that little is left to be read under the lock
            marked = self._try_to_mark(number, keys, rule, touches)
            if marked is not None:
                return marked
            time.sleep(LOCK_STEP_SECONDS)
        raise NotReady("a process holds on to promise.lock, so nothing can be evicted: is one of them stopped?")

    def _try_to_mark(self, number: int, keys: set[bytes], rule: Rule, touches: TouchReader) -> bool | None:
        # The index is locked first: to wait for its writers while promises wait for us would stall everybody.
        txn = self._index.env.begin(write=True)
        try:
            with self._promises.exclusively() as held:
                if not held:
                    txn.abort()
                    return None
                row = self._index.segment(txn, number)
                ignored = rule.is_everything or (row is not None and row.suspect)
                if row is None or (not ignored and self._is_in_use(txn, number, keys, rule, touches)):
                    txn.abort()
                    return False
                self._index.put_segment(txn, number, row._replace(state=SegmentState.SWEEPING))
                txn.commit()
                return True
        except BaseException:
            txn.abort()
            raise

    def _is_in_use(self, txn: Transaction, number: int, keys: set[bytes], rule: Rule, touches: TouchReader) -> bool:
        touched = touches.read()
        if not touched.keys.isdisjoint(keys):
            return True
        return any(self._concerns(txn, number, name, rule) for name in touched.names)

    def _concerns(self, txn: Transaction, number: int, name: bytes, rule: Rule) -> bool:
        """Whether a name that was used lies here, with blobs that do not know of it yet."""
        known = self._uses.name(name)
        if known is not None and known.applied_ms >= rule.horizon_ms:
            return False
        value = txn.get(name, db=self._index.closures)
        return value is not None and number in {place for place, _ in places_of(value)}

    # -- 3 and 4: away with it --------------------------------------------------------------------------------------

    def _delete(self, marked: Mapping[int, Listed]) -> None:
        self._delete_listed(marked)
        for number in marked:
            with self._index.reading() as txn:
                row = self._index.segment(txn, number)
            if row is not None and row.live_count > 0:  # the segment did not tell of all that is listed in it
                self._delete_listed({number: self._listed_slowly(number)})

    def _delete_listed(self, going: Mapping[int, Listed], *, lost: bool = False) -> None:
        index = self._index
        ordered = sorted(itertools.chain.from_iterable(going.values()))  # neighbours in the index go together
        for start in range(0, len(ordered), _AT_ONCE):
            part = ordered[start : start + _AT_ONCE]
            gone = []
            # Also what was replaced by an upload meanwhile: it is not listed here any more.
            counts = Counter(entry.segment for _, entry in part)
            sizes: Counter[int] = Counter()
            with index.env.begin(write=True) as txn:
                with txn.cursor(index.blobs) as cursor:
                    for key, entry in part:
                        if cursor.set_key(key) and cursor.value() == ENTRY.pack(*entry):
                            cursor.delete()
                            gone.append(key)
                            sizes[entry.segment] += record_bytes(entry.size_bytes)
                for number, count in counts.items():
                    row = index.segment(txn, number)
                    if row is not None:
                        left = row._replace(
                            live_bytes=max(0, row.live_bytes - sizes[number]),
                            live_count=max(0, row.live_count - count),
                            incarnation=row.incarnation + lost,
                        )
                        index.put_segment(txn, number, left)
            self._uses.forget(gone)

    def _hide(self, numbers: Collection[int]) -> None:
        for number in numbers:
            self._files.drop(number)  # or we would be the reader for whom its blocks are kept
        self._departing.depart({number: self._path(number) for number in numbers})
        with self._index.env.begin(write=True) as txn:
            for number in numbers:
                txn.delete(number.to_bytes(4, "big"), db=self._index.segments)

    def _path(self, number: int) -> str:
        return os.path.join(self._layout.segments, segment_name(number))

    def _is_written(self, number: int) -> bool:
        """Whether some process still appends to it."""
        try:
            descriptor = os.open(self._path(number), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not locks.try_lock(descriptor, exclusive=True)
        finally:
            os.close(descriptor)

    def _size(self, number: int) -> int:
        try:
            return os.stat(self._path(number)).st_size
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        """Let files go."""
        self._files.close()
        self._for_used.close()
        self._for_pinned.close()
