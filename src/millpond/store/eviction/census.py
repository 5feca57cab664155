"""What lies where and when it was used: what upkeep chooses by.

A census begins with one pass over the index and the table of uses in key order. It keeps, per sealed segment, when what
lies there was last used and how much it is, in arrays of numbers: for what was last used together, 12 bytes, and 20 where
that is leased; so much per blob at most. What is pinned or leased never counts as cold.

A census grows old and stays true enough: what was used since is seen when a segment is looked at
(``store.eviction.sweeping``). What was sealed since, and what was promised to others meanwhile, is added segment by
segment (:meth:`Census.update`, :meth:`Census.refresh`), because another pass costs more than what it was made for.
"""

import itertools
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from millpond.store.eviction.horizon import EVERYTHING_MS, UNIT_BITS, UNIT_BYTES, Counted, Histogram, Horizon
from millpond.store.index import ENTRY, Index, SegmentRow, SegmentState
from millpond.store.segments.files import SegmentFile, segment_name
from millpond.store.segments.format import Damaged, record_bytes
from millpond.store.segments.rebuild import read_places
from millpond.store.uses.table import USE, Uses

_ROWS_AT_ONCE = 20_000
_SAMPLE = 32
"""So many blobs stand for all of a segment that was sealed since. What goes of it is seen when it is looked at."""
_PINNED = b"pinned"
_PLAIN_BYTES = record_bytes(1) - 1
"""What a record takes beyond its blob; that of a blob above 1 MiB takes a little more."""
Rows = tuple[Sequence[bytes], Sequence[tuple[int, int, int, int]]]
"""Keys, and the entries of the index under them."""


class Census(Horizon):
    """What lies where and when it was used, as of one pass and what was added to it."""

    def __init__(
        self,
        index: Index,
        uses: Uses,
        directory: str,
        *,
        now_ms: int,
        leased_limit_bytes: int,
        full_bytes: int = 0,
        ignore_leases: bool = False,
    ) -> None:
        """Make the pass.

        ``full_bytes``: a segment that is not sealed and as large as this soon will be.

        Raises:
            OSError, lmdb.Error: it cannot be made.
        """
        super().__init__()
        self._leases_after_ms = self.lease_floor_ms = EVERYTHING_MS if ignore_leases else now_ms
        """Leases that last longer than the floor protect."""
        self._leased_limit_bytes = leased_limit_bytes
        self._full_bytes = full_bytes
        self._index = index
        self._uses = uses
        self._directory = directory
        self._granted = Histogram()
        self._created: dict[int, int] = {}
        self._estimated: set[int] = set()
        """Once each: what was looked at and did not go was not what it seemed, and is counted."""
        found = {
            number: counted
            for number, row in self._listed_segments()
            if (counted := self._measured(number, row)) is not None
        }
        self._count(self._everything(), found)
        self._take(found)
        self._end_leases()

    @property
    def blobs(self) -> int:
        """How many it counted."""
        return sum(segment.blobs for segment in self._segments.values())

    def blobs_in(self, numbers: Iterable[int]) -> int:
        """How many of them in these segments."""
        return sum(segment.blobs for number in numbers if (segment := self._segments.get(number)) is not None)

    @property
    def pinned_bytes(self) -> int:
        """What pins keep."""
        return sum(segment.pinned_bytes for segment in self._segments.values())

    @property
    def other_bytes(self) -> int:
        """What lies in segments that are not sealed."""
        return sum(row.end for _, row in self._listed_segments() if row.state is not SegmentState.SEALED)

    @property
    def leased_bytes(self) -> int:
        """What leases keep."""
        return UNIT_BYTES * sum(sum(segment.leased.units) for segment in self._segments.values())

    # -- what has changed -------------------------------------------------------------------------------------------

    def update(self, now_ms: int) -> None:
        """Know what was sealed and removed since, and which leases have ended.

        Raises:
            OSError, lmdb.Error: it cannot be known.
        """
        self._leases_after_ms = max(self._leases_after_ms, now_ms)
        rows = dict(self._listed_segments())
        for number in self._segments.keys() - rows.keys():
            self.gone(number)
        self._count_anew(
            {
                number: row
                for number, row in rows.items()
                if (known := self._segments.get(number)) is None or not known.is_sealed or row.suspect
            },
            roughly=True,
        )
        for number, row in rows.items():
            known = self._segments.get(number)
            if known is not None and known.is_sealed and not row.suspect:
                known.dead_bytes = max(0, known.file_bytes - row.live_bytes)
        self._end_leases()

    def refresh(self, numbers: Iterable[int]) -> None:
        """Count these anew, because what lies there was used, or is not leased any more.

        Raises:
            OSError, lmdb.Error: it cannot be known.
        """
        wanted = set(numbers)
        self._count_anew({number: row for number, row in self._listed_segments() if number in wanted})
        self._end_leases()

    def _count_anew(self, rows: Mapping[int, SegmentRow], *, roughly: bool = False) -> None:
        fresh: dict[int, Counted] = {}
        for number, row in rows.items():
            self.gone(number)
            counted = self._measured(number, row)
            if counted is None:
                continue
            if counted.is_sealed and not row.suspect:
                self._count_in_segment(number, counted, roughly=roughly)
            elif not counted.is_sealed:  # as if nothing in it had been used since: it is not chosen for that
                counted.times.append(self._created_ms(number))
                counted.units.append(counted.file_bytes >> UNIT_BITS)
            fresh[number] = counted
        self._take(fresh)

    def _take(self, counted: Mapping[int, Counted]) -> None:
        for number, segment in counted.items():
            self._add(number, segment)
            self._granted.add(segment.leased.untils, segment.leased.units)

    def _forgotten(self, segment: Counted) -> None:
        self._granted.add(segment.leased.untils, segment.leased.units, -1)

    def _end_leases(self) -> None:
        """Leases protect up to a limit, the newest first; beyond it they count by age."""
        excess = self._granted.bytes - self._leased_limit_bytes
        # It only rises: those that were ended already are counted as granted no more.
        floor_ms = max(self.lease_floor_ms, self._leases_after_ms)
        if excess > 0:
            floor_ms = max(floor_ms, self._granted.horizon(excess) - 1)
        self.lease_floor_ms = floor_ms
        for segment in self._segments.values():
            rows = segment.leased.ended(floor_ms)
            if rows:
                untils, times, units = zip(*rows, strict=True)
                segment.times.extend(times)
                segment.units.extend(units)
                self._cold.add(times, units)
                self._granted.add(untils, units, -1)

    # -- counting ---------------------------------------------------------------------------------------------------

    def _listed_segments(self) -> list[tuple[int, SegmentRow]]:
        with self._index.reading() as txn:
            return list(self._index.all_segments(txn))

    def _measured(self, number: int, row: SegmentRow) -> Counted | None:
        """A segment in which nothing is counted yet; None for one that is not to be thought of."""
        try:
            size = os.stat(self._path(number)).st_size
        except FileNotFoundError:
            return None
        if row.suspect:
            return Counted(size, size, row.live_count)  # nothing in it counts as held
        if row.state is SegmentState.SEALED:
            return Counted(size, max(0, size - row.live_bytes), row.live_count)
        if row.end >= self._full_bytes or row.live_count == 1:
            return Counted(size, 0, row.live_count, is_sealed=False)
        return None

    def _count(self, pieces: Iterable[Rows], segments: Mapping[int, Counted]) -> None:
        """Add what lies in ``segments`` to them."""
        for keys, entries in pieces:
            used, pinned = self._known(keys)
            used.update(dict.fromkeys(pinned, _PINNED))
            sums: dict[tuple[int, bytes | None], int] = defaultdict(int)
            # This loop runs once per blob; what follows, once for all that was last used together.
            for (number, _, size, _), use in zip(entries, map(used.get, keys), strict=True):
                sums[number, use] += size + _PLAIN_BYTES
            for (number, use), size_bytes in sums.items():
                segment = segments.get(number)
                if segment is not None:
                    self._add_used(segment, number, use, size_bytes)

    def _add_used(self, segment: Counted, number: int, use: bytes | None, size_bytes: int) -> None:
        """Add blobs of a segment that were last used at the same time."""
        if use == _PINNED:
            segment.pinned_bytes += size_bytes
            return
        units = size_bytes >> UNIT_BITS  # rounded down: what is chosen must keep what it promises
        time_ms, lease_ms, _ = (self._created_ms(number), 0, 0) if use is None else USE.unpack(use)
        if lease_ms > self._leases_after_ms:
            segment.leased.add(lease_ms, time_ms, units)
        else:
            segment.times.append(time_ms)
            segment.units.append(units)

    def _everything(self) -> Iterator[Rows]:
        """All of the index, in pieces; no read transaction stays open between them."""
        after = b""
        while True:
            with self._index.reading() as txn, txn.cursor(self._index.blobs) as cursor:
                rows = list(itertools.islice(cursor, _ROWS_AT_ONCE)) if cursor.set_range(after) else []
            if rows:
                yield _columns(rows)
            if len(rows) < _ROWS_AT_ONCE:
                return
            after = rows[-1][0] + b"\0"

    def _count_in_segment(self, number: int, segment: Counted, *, roughly: bool) -> None:
        """Add what lies there; ``roughly``: as a part of it is used."""
        try:
            keys = [key for key, _ in read_places(SegmentFile(self._path(number), number))]
        except (OSError, Damaged):
            return  # what lies there is found by the next pass
        if roughly and number not in self._estimated and len(keys) > 2 * _SAMPLE:
            self._estimated.add(number)
            self._estimate(number, segment, _some_of(keys))
            return
        with self._index.reading() as txn, txn.cursor(self._index.blobs) as cursor:
            found = cursor.getmulti(sorted(set(keys)))
        if found:
            self._count([_columns(found)], {number: segment})

    def _estimate(self, number: int, segment: Counted, sample: Sequence[bytes]) -> None:
        """Add what lies in a segment as if all of it were used like a few of its blobs."""
        used, pinned = self._known(sample)
        live_bytes = segment.file_bytes - segment.dead_bytes
        for use, times in Counter(_PINNED if key in pinned else used.get(key) for key in sample).items():
            self._add_used(segment, number, use, live_bytes * times // len(sample))

    def _known(self, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], set[bytes]]:
        with self._uses.reading() as txn:
            with txn.cursor(self._uses.blobs) as cursor:
                used = dict(cursor.getmulti(keys))
            pinned: set[bytes] = set()
            if txn.stat(self._uses.pinned)["entries"]:
                with txn.cursor(self._uses.pinned) as cursor:
                    pinned = {key for key, _ in cursor.getmulti(keys)}
        return used, pinned

    def _created_ms(self, number: int) -> int:
        """As old as its segment says: for a blob whose uses were lost."""
        known = self._created.get(number)
        if known is None:
            known = self._created[number] = created_ms(self._directory, number)
        return known

    def _path(self, number: int) -> str:
        return os.path.join(self._directory, segment_name(number))


def _some_of(keys: Sequence[bytes]) -> list[bytes]:
    """One of each of ``_SAMPLE`` parts, or a few more; which, nobody who stored them can know."""
    step = len(keys) // _SAMPLE
    return [secrets.choice(keys[at : at + step]) for at in range(0, len(keys), step)]


def _columns(rows: Sequence[tuple[bytes, bytes]]) -> Rows:
    return [key for key, _ in rows], list(ENTRY.iter_unpack(b"".join([entry for _, entry in rows])))


def created_ms(directory: str, number: int) -> int:
    """When a segment was begun; 0 where that cannot be read."""
    try:
        return SegmentFile(os.path.join(directory, segment_name(number)), number).header.created_ms
    except (OSError, Damaged):
        return 0
