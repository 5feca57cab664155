"""Choosing what goes: the horizon, and the segments that give most for the least copying.

A *census* is one pass over the index and the table of uses in key order. It keeps, per sealed segment, when what lies
there was last used and how much it is, in arrays of numbers: 12 bytes per blob. From it follows the *horizon*, the time
below which lie just the bytes that are needed, and with it what each segment would give. What is pinned or leased never
counts as cold.

A census grows old and stays true enough: what was used since is seen when a segment is looked at (``store.eviction.making_room``),
and what was stored since is younger than any horizon. So one census serves many choices.

The rule: per byte that a segment frees, at most three are copied. Where no segment has a quarter to give, the horizon
rises: what was used more recently goes, instead of copying round and round.
"""

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from millpond.core import limits
from millpond.store.index import ENTRY, Index, SegmentState
from millpond.store.segments.files import SegmentFile, segment_name
from millpond.store.segments.format import RECORD_HEADER_BYTES, Damaged, record_bytes
from millpond.store.uses.table import USE, Uses

COPIED_PER_FREED = 3
EVERYTHING_MS = 1 << 62
"""A horizon above all times."""
_UNIT_BITS = 6
_UNIT_BYTES = 1 << _UNIT_BITS
_ROWS_AT_ONCE = 20_000
_DISTINCT_TIMES = 100_000
"""Beyond it, times that lie close together count as one: a few seconds in a month."""
_RISE = 1.5
_CLOSE_MS = 1000
"""Uses that are no further apart are one burst: an artifact that is pushed or fetched."""

CreatedMs = Callable[[int], int]


class Victim(NamedTuple):
    """A segment that is to go, and what is expected of it, in bytes."""

    number: int
    freed_bytes: int
    kept_bytes: int


class Plan(NamedTuple):
    """What to do: evict ``victims`` in this order; whatever was used before the horizon may go."""

    horizon_ms: int
    victims: Sequence[Victim]
    short_bytes: int
    """What is still missing when all of them are gone."""
    unsealed_bytes: int = 0
    """What could go of segments that are not sealed yet."""


class _Segment:
    """What a census knows of one segment."""

    __slots__ = ("add_time", "add_units", "dead_bytes", "file_bytes", "is_sealed", "times", "units")

    def __init__(self, file_bytes: int, dead_bytes: int, *, is_sealed: bool = True) -> None:
        self.is_sealed = is_sealed
        self.file_bytes = file_bytes
        self.dead_bytes = dead_bytes
        self.times = array("Q")
        self.units = array("I")
        self.add_time, self.add_units = self.times.append, self.units.append

    def cold_bytes(self, horizon_ms: int) -> int:
        if horizon_ms >= EVERYTHING_MS:
            return sum(self.units) * _UNIT_BYTES
        times, units = self.times, self.units
        return _UNIT_BYTES * sum([unit for time_ms, unit in zip(times, units, strict=True) if time_ms < horizon_ms])


class _Histogram:
    """Time to bytes, with as many distinct times as fit."""

    def __init__(self) -> None:
        self._shift = 0
        self._units: dict[int, int] = {}

    def add(self, times: Sequence[int], units: Sequence[int], sign: int = 1) -> None:
        held, shift = self._units, self._shift
        get = held.get
        for time_ms, unit in zip(times, units, strict=True):
            slot = time_ms >> shift
            held[slot] = get(slot, 0) + sign * unit
        while len(self._units) > _DISTINCT_TIMES:
            self._coarsen()

    def _coarsen(self) -> None:
        self._shift += 2
        coarse: dict[int, int] = {}
        for slot, unit in self._units.items():
            coarse[slot >> 2] = coarse.get(slot >> 2, 0) + unit
        self._units = coarse

    @property
    def bytes(self) -> int:
        return sum(self._units.values()) * _UNIT_BYTES

    def horizon(self, wanted_bytes: int, slack_bytes: int = 0) -> int:
        """The least time below which lie ``wanted_bytes``; above all times when there are fewer.

        With ``slack_bytes`` it may lie so much higher, as long as uses follow each other closely.
        """
        found, before_ms = 0, 0
        for slot in sorted(self._units):
            time_ms = slot << self._shift
            if found >= wanted_bytes and (found >= wanted_bytes + slack_bytes or time_ms - before_ms > _CLOSE_MS):
                return time_ms
            found += self._units[slot] * _UNIT_BYTES
            before_ms = time_ms
        return EVERYTHING_MS


class _Leased:
    """Leased blobs, 24 bytes for each."""

    def __init__(self) -> None:
        self.untils, self.times = array("Q"), array("Q")
        self.numbers, self.units = array("I"), array("I")

    def add(self, until_ms: int, time_ms: int, number: int, units: int) -> None:
        self.untils.append(until_ms)
        self.times.append(time_ms)
        self.numbers.append(number)
        self.units.append(units)

    def rows(self) -> Iterator[tuple[int, int, int, int]]:
        return zip(self.untils, self.times, self.numbers, self.units, strict=True)


class Census:
    """What lies where and when it was used, as of one pass."""

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
        self.now_ms = now_ms
        self.blobs = 0
        self.pinned_bytes = 0
        self.leased_bytes = 0
        self.other_bytes = 0
        self.lease_floor_ms = EVERYTHING_MS if ignore_leases else now_ms
        """Leases that last longer than this protect."""
        self._full_bytes = full_bytes
        self._index = index
        self._uses = uses
        self._directory = directory
        self._segments = dict(self._known_segments())
        self._cold = _Histogram()
        self._created: dict[int, int] = {}
        leased = _Leased()
        self._pass(leased)
        self._let_the_oldest_leases_go(leased, leased_limit_bytes)
        for segment in self._segments.values():
            self._cold.add(segment.times, segment.units)

    def _known_segments(self) -> Iterator[tuple[int, _Segment]]:
        with self._index.reading() as txn:
            rows = list(self._index.all_segments(txn))
        for number, row in rows:
            try:
                size = os.stat(os.path.join(self._directory, segment_name(number))).st_size
            except FileNotFoundError:
                continue
            if row.suspect:
                yield number, _Segment(size, size)  # nothing in it counts as held
            elif row.state is SegmentState.SEALED:
                yield number, _Segment(size, max(0, size - row.live_bytes))
            else:
                self.other_bytes += size
                if row.end >= self._full_bytes or row.live_count == 1:
                    yield number, _Segment(size, 0, is_sealed=False)

    # -- the pass ---------------------------------------------------------------------------------------------------

    def _pass(self, leased: _Leased) -> None:
        segments_get, unpack = self._segments.get, USE.unpack
        floor_ms = self.lease_floor_ms
        for keys, entries in self._rows():
            self.blobs += len(keys)
            used, pinned = self._known(keys)
            # This loop runs once per blob: what is rare is asked last, and methods are looked up once.
            for key, (number, _, size, _), use in zip(keys, entries, map(used.get, keys), strict=True):
                segment = segments_get(number)
                if segment is None:
                    continue
                if pinned and key in pinned:
                    self.pinned_bytes += record_bytes(size)
                    continue
                # Its record in units, rounded down: what is chosen must keep what it promises.
                units = size + RECORD_HEADER_BYTES >> _UNIT_BITS
                if use is None:
                    time_ms = self._created_ms(number)
                else:
                    time_ms, lease_ms, _ = unpack(use)
                    if lease_ms > floor_ms:
                        leased.add(lease_ms, time_ms, number, units)
                        continue
                segment.add_time(time_ms)
                segment.add_units(units)

    def _rows(self) -> Iterator[tuple[list[bytes], Sequence[tuple[int, int, int, int]]]]:
        """All of the index, in pieces; no read transaction stays open between them."""
        after = b""
        while True:
            with self._index.reading() as txn, txn.cursor(self._index.blobs) as cursor:
                keys, values = [], []
                if cursor.set_range(after):
                    for key, value in cursor:
                        keys.append(key)
                        values.append(value)
                        if len(keys) == _ROWS_AT_ONCE:
                            break
            if keys:
                yield keys, list(ENTRY.iter_unpack(b"".join(values)))
            if len(keys) < _ROWS_AT_ONCE:
                return
            after = keys[-1] + b"\0"

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

    def _let_the_oldest_leases_go(self, leased: _Leased, limit_bytes: int) -> None:
        """Leases protect up to ``limit_bytes``, the newest first; beyond it they count by age."""
        granted = _Histogram()
        granted.add(leased.untils, leased.units)
        if granted.bytes > limit_bytes:
            self.lease_floor_ms = granted.horizon(granted.bytes - limit_bytes) - 1
        for lease_ms, time_ms, number, units in leased.rows():
            if lease_ms > self.lease_floor_ms:
                self.leased_bytes += units * _UNIT_BYTES
            else:
                self._segments[number].times.append(time_ms)
                self._segments[number].units.append(units)

    # -- choosing ---------------------------------------------------------------------------------------------------

    def plan(self, to_free_bytes: int, *, slack_bytes: int = 0, patient: bool = False) -> Plan:
        """The segments whose eviction frees ``to_free_bytes``, the cheapest first; fewer where there are no more.

        ``slack_bytes``: the horizon may lie so much higher than it must. What writers in turns have stored in several
        segments is cold in all of them by half; instead of copying the other half, which is next to go, it goes as well.
        ``patient``: what lies in segments that are about to be sealed is waited for, instead of taking what is younger.
        """
        wanted = to_free_bytes
        while True:
            horizon_ms = self._cold.horizon(wanted, slack_bytes)
            plan = self.plan_below(horizon_ms, to_free_bytes)
            if not plan.short_bytes or horizon_ms >= EVERYTHING_MS:
                return plan
            if patient and plan.unsealed_bytes >= plan.short_bytes:
                return plan._replace(short_bytes=0)
            wanted = int(wanted * _RISE)

    def plan_below(self, horizon_ms: int, to_free_bytes: int, *, copied_per_freed: float = COPIED_PER_FREED) -> Plan:
        """As :meth:`plan`, with the horizon given."""
        candidates = []
        unsealed = 0
        for number, segment in self._segments.items():
            if not segment.is_sealed:
                unsealed += segment.cold_bytes(horizon_ms)
                continue
            freed = min(segment.file_bytes, segment.dead_bytes + segment.cold_bytes(horizon_ms))
            kept = segment.file_bytes - freed
            if freed and kept <= copied_per_freed * freed:
                candidates.append((kept / freed, number, freed, kept))
        candidates.sort()
        victims: list[Victim] = []
        short = to_free_bytes
        for _, number, freed, kept in candidates:
            if short <= 0:
                break
            victims.append(Victim(number, freed, kept))
            short -= freed
        return Plan(horizon_ms, victims, max(0, short), unsealed)

    def gone(self, number: int) -> None:
        """The segment was evicted, or is not to be thought of any more."""
        segment = self._segments.pop(number, None)
        if segment is not None:
            self._cold.add(segment.times, segment.units, -1)


def created_ms(directory: str, number: int) -> int:
    """When a segment was begun; 0 where that cannot be read."""
    try:
        return SegmentFile(os.path.join(directory, segment_name(number)), number).header.created_ms
    except (OSError, Damaged):
        return 0


assert limits.SEGMENT_MAX_BYTES < _UNIT_BYTES << 32
