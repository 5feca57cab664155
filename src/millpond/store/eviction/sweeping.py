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
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum, auto
from typing import NamedTuple

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.errors import NoSpace, NotReady
from millpond.disk import locks
from millpond.disk.blocks import pieces
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
from millpond.store.segments.rebuild import read_places
from millpond.store.uses.merging import TouchReader
from millpond.store.uses.table import Uses
from millpond.store.uses.use import Use

log = logging.getLogger(__name__)
_TRIES = 3
_UNKNOWN = b""
"""In the place of an encoded use: nothing is known of the blob."""
_MARKED_AT_ONCE = 6_000
"""Blobs in marked segments that are not deleted yet."""

Listed = dict[bytes, bytes]
"""What the index lists in a segment, in the order of keys: key to encoded entry, for most of them are only looked for."""
Kept = list[tuple[bytes, Entry]]
"""What is to be kept of it, in the order in which it lies."""


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
    NO_ROOM = auto()
    """There was none for copies of what is kept."""


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
            try:
                self._move(kept)
            except NoSpace:
                return Swept(End.NO_ROOM, copied_bytes=copied)
            copied += kept_bytes
            row = row._replace(live_count=-1)  # from now on we would have to look
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
        pinned = self._uses.pinned_of(list(listed))
        going = {key: entry for key, entry in listed.items() if key not in pinned}
        self._break_promises(EVERYTHING_MS)
        self._delete_listed({number: going}, lost=True)
        return len(going)

    # -- 1: what is to be kept --------------------------------------------------------------------------------------

    def _sorted_out(self, number: int, row: SegmentRow, rule: Rule, touches: TouchReader) -> tuple[Listed, Kept, int]:
        """What goes and what is kept of a segment, and the last use of what goes."""
        going = listed = self._listed(number, row.live_count)
        if row.suspect:
            return listed, [], 0
        keys = list(listed)
        touched: set[bytes] = set() if rule.is_everything else touches.read().keys
        staying = self._uses.pinned_of(keys) | (listed.keys() & touched)
        # What came together was used together: there are few different uses, so they are judged instead of the blobs.
        found, uses = self._uses.found(keys)
        if len(found) < len(keys):
            uses[_UNKNOWN] = Use(created_ms(self._layout.segments, number))
        too_young = {
            known
            for known, use in uses.items()
            if use.time_ms >= rule.horizon_ms or use.lease_until_ms > rule.lease_floor_ms
        }
        if too_young:
            staying |= {key for key in keys if found.get(key, _UNKNOWN) in too_young}
        if staying:
            going = {key: entry for key, entry in listed.items() if key not in staying}
            left = {found.get(key, _UNKNOWN) for key in going}
            uses = {known: use for known, use in uses.items() if known in left}
        kept = sorted([(key, Entry.decode(listed[key])) for key in staying], key=lambda item: item[1].offset)
        # By order everything goes, also what was leased since the logs were merged.
        leased_ms = max([use.lease_until_ms for use in uses.values()], default=0)
        self._break_promises(EVERYTHING_MS if rule.is_everything and going else leased_ms)
        return going, kept, max([use.time_ms for use in uses.values()], default=0)

    def _break_promises(self, leased_until_ms: int) -> None:
        """Where leased blobs go (beyond what leases may hold, or all by order), the push they were leased for will fail.

        It must fail, and not be taken for one whose blobs live elsewhere: that is asked of the memory of refusals.
        """
        now = self._clock()
        if leased_until_ms > now:
            doubt_everything(self._layout.refusals, now + limits.REFUSED_MS)

    def _listed(self, number: int, live_count: int = -1) -> Listed:
        """What the index lists in a segment, where ``live_count`` blobs of it were listed a moment ago."""
        try:
            places = read_places(SegmentFile(self._path(number), number))
        except (OSError, Damaged):
            return self._listed_slowly(number)
        here = number.to_bytes(4, "little")
        listed = {key: here + place for key, place in sorted(places)}
        if len(places) == len(listed) == live_count:
            return listed  # nothing in it is dead
        with self._index.reading() as txn, txn.cursor(self._index.blobs) as cursor:
            return {key: entry for key, entry in cursor.getmulti(list(listed)) if entry[:4] == here}

    def _listed_slowly(self, number: int) -> Listed:
        """The same, for a segment that cannot tell: all of the index is looked through."""
        here = number.to_bytes(4, "little")
        with self._index.reading() as txn, txn.cursor(self._index.blobs) as cursor:
            return {key: entry for key, entry in cursor if entry[:4] == here}

    def _move(self, kept: Kept) -> None:
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
        with self._index.writing() as txn:
            quarantine(self._index, self._layout.segments, txn, digest[0], entry)

    # -- 2: the last look -------------------------------------------------------------------------------------------

    def _mark(self, number: int, going: Listed, rule: Rule, touches: TouchReader) -> bool:
        """Mark it sweeping, unless something in it was used or promised up to now."""
        for _ in range(LOCK_TRIES):
            touches.read()  # most of what came since, so that little is left to be read under the lock
            marked = self._try_to_mark(number, going, rule, touches)
            if marked is not None:
                return marked
            time.sleep(LOCK_STEP_SECONDS)
        raise NotReady("a process holds on to promise.lock, so nothing can be evicted: is one of them stopped?")

    def _try_to_mark(self, number: int, going: Listed, rule: Rule, touches: TouchReader) -> bool | None:
        # The index is locked first: to wait for its writers while promises wait for us would stall everybody.
        txn = self._index.env.begin(write=True)
        try:
            self._index.see_to(txn)
            with self._promises.exclusively() as held:
                if not held:
                    txn.abort()
                    return None
                row = self._index.segment(txn, number)
                ignored = rule.is_everything or (row is not None and row.suspect)
                if row is None or (not ignored and self._is_in_use(txn, number, going, rule, touches)):
                    txn.abort()
                    return False
                self._index.put_segment(txn, number, row._replace(state=SegmentState.SWEEPING))
                txn.commit()
                return True
        except BaseException:
            txn.abort()
            raise

    def _is_in_use(self, txn: Transaction, number: int, going: Listed, rule: Rule, touches: TouchReader) -> bool:
        touched = touches.read()
        if not touched.keys.isdisjoint(going):
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
        # Neighbours in the index go together, whatever segment they lie in.
        ordered = sorted(itertools.chain.from_iterable(listed.items() for listed in going.values()))
        for part in pieces(ordered, self._index.rows_at_once()):  # writers wait for each
            keys, entries = zip(*part, strict=True)
            newer: dict[bytes, bytes] = {}
            with self._index.writing(rows=len(part)) as txn:
                with txn.cursor(self._index.blobs) as cursor:
                    found = tuple(map(cursor.pop, keys))
                    if found != entries:
                        newer = _newer(keys, entries, found)
                        cursor.putmulti(list(newer.items()))
                        # Whoever took an entry away, because its blob was damaged, has counted it off.
                        entries = tuple(entry for entry, now in zip(entries, found, strict=True) if now is not None)
                self._count_off(txn, entries, lost=lost)
            self._uses.forget([key for key in keys if key not in newer])

    def _count_off(self, txn: Transaction, entries: Iterable[bytes], *, lost: bool) -> None:
        """These are not listed any more where they were, because they were deleted or, meanwhile, uploaded again."""
        sizes: dict[int, list[int]] = defaultdict(list)
        for number, _, size, _ in ENTRY.iter_unpack(b"".join(entries)):
            sizes[number].append(size)
        for number, gone in sizes.items():
            row = self._index.segment(txn, number)
            if row is not None:
                left = row._replace(
                    live_bytes=max(0, row.live_bytes - sum(map(record_bytes, gone))),
                    live_count=max(0, row.live_count - len(gone)),
                    incarnation=row.incarnation + lost,
                )
                self._index.put_segment(txn, number, left)

    def _hide(self, numbers: Collection[int]) -> None:
        for number in numbers:
            self._files.drop(number)  # or we would be the reader for whom its blocks are kept
        self._departing.depart({number: self._path(number) for number in numbers})
        with self._index.writing(rows=len(numbers)) as txn:
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


def _newer(keys: Sequence[bytes], entries: Sequence[bytes], found: Sequence[bytes | None]) -> dict[bytes, bytes]:
    """Those that were found in another segment: they were uploaded again."""
    return {key: now for key, entry, now in zip(keys, entries, found, strict=True) if now and now[:4] != entry[:4]}
