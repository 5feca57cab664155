"""Choosing what goes: the horizon, and the segments that give most for the least copying.

A census (``store.eviction.census``) says when what lies in each segment was last used, and how much that is. From it
follows the *horizon*, the time below which lie just the bytes that are needed, and with it what each segment would give.

The rule: per byte that a segment frees, at most three are copied. Where no segment has a quarter to give, the horizon
rises: what was used more recently goes, instead of copying round and round.
"""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from millpond.core import limits

COPIED_PER_FREED = 3
EVERYTHING_MS = 1 << 62
"""A horizon above all times."""
UNIT_BITS = 6
UNIT_BYTES = 1 << UNIT_BITS
_DISTINCT_TIMES = 100_000
"""Beyond it, times that lie close together count as one: a few seconds in a month."""
_RISE, _RISE_BYTES = 1.5, 64 << 10
"""By how much more may go where no segment has a quarter to give, and the least: who needs a byte must not ask for ever."""
_CLOSE_MS = 1000
"""Uses that are no further apart are one burst: an artifact that is pushed or fetched."""


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
    wanted_bytes: int = 0
    """What it was made to free."""


class Leased:
    """Leased blobs of a segment: until when, since when not used, and units; 20 bytes for each."""

    __slots__ = ("times", "units", "untils")

    def __init__(self) -> None:
        self.untils, self.times, self.units = array("Q"), array("Q"), array("I")

    def add(self, until_ms: int, time_ms: int, units: int) -> None:
        """One more."""
        self.untils.append(until_ms)
        self.times.append(time_ms)
        self.units.append(units)

    def ended(self, floor_ms: int) -> list[tuple[int, int, int]]:
        """Take out those that end by then."""
        if not self.untils or min(self.untils) > floor_ms:
            return []
        rows = list(zip(self.untils, self.times, self.units, strict=True))
        for column in (self.untils, self.times, self.units):
            del column[:]
        for row in rows:
            if row[0] > floor_ms:
                self.add(*row)
        return [row for row in rows if row[0] <= floor_ms]


class Counted:
    """What a census knows of one segment."""

    __slots__ = ("_span", "blobs", "dead_bytes", "file_bytes", "is_sealed", "leased", "pinned_bytes", "times", "units")

    def __init__(self, file_bytes: int, dead_bytes: int, blobs: int, *, is_sealed: bool = True) -> None:
        self.is_sealed = is_sealed
        self.blobs = blobs
        self.file_bytes = file_bytes
        self.dead_bytes = dead_bytes
        self.pinned_bytes = 0
        self.times = array("Q")
        self.units = array("I")
        self.leased = Leased()
        self._span = (0, 0, 0, 0)

    def cold_bytes(self, horizon_ms: int) -> int:
        """What was last used before the horizon."""
        times, units = self.times, self.units
        if not times:
            return 0
        known, first_ms, last_ms, total = self._span
        if known != len(times):
            first_ms, last_ms, total = min(times), max(times), sum(units)
            self._span = (len(times), first_ms, last_ms, total)
        # Most segments lie on one side, and a plan asks all of them.
        if horizon_ms <= first_ms:
            return 0
        if horizon_ms > last_ms:
            return total * UNIT_BYTES
        return UNIT_BYTES * sum([unit for time_ms, unit in zip(times, units, strict=True) if time_ms < horizon_ms])


class Histogram:
    """Time to bytes, with as many distinct times as fit."""

    def __init__(self) -> None:
        self._shift = 0
        self._units: dict[int, int] = {}

    def add(self, times: Sequence[int], units: Sequence[int], sign: int = 1) -> None:
        """Add so much at these times, or with ``sign`` -1 take it away."""
        held, shift = self._units, self._shift
        get = held.get
        for time_ms, unit in zip(times, units, strict=True):
            slot = time_ms >> shift
            held[slot] = get(slot, 0) + sign * unit
        if sign < 0:
            for slot in {time_ms >> shift for time_ms in times}:
                if not held[slot]:
                    del held[slot]
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
        """All of it."""
        return sum(self._units.values()) * UNIT_BYTES

    def horizon(self, wanted_bytes: int, slack_bytes: int = 0) -> int:
        """The least time below which lie ``wanted_bytes``; above all times when there are fewer.

        With ``slack_bytes`` it may lie so much higher, as long as uses follow each other closely.
        """
        found, before_ms = 0, 0
        for slot in sorted(self._units):
            time_ms = slot << self._shift
            if found >= wanted_bytes and (found >= wanted_bytes + slack_bytes or time_ms - before_ms > _CLOSE_MS):
                return time_ms
            found += self._units[slot] * UNIT_BYTES
            before_ms = time_ms
        return EVERYTHING_MS


class Horizon:
    """The segments that there are to choose from."""

    def __init__(self) -> None:
        self._segments: dict[int, Counted] = {}
        self._cold = Histogram()

    @property
    def cold_bytes(self) -> int:
        """What may go at all: neither pinned nor leased."""
        return self._cold.bytes

    def _add(self, number: int, segment: Counted) -> None:
        self._segments[number] = segment
        self._cold.add(segment.times, segment.units)

    def plan(
        self,
        to_free_bytes: int,
        *,
        slack_bytes: int = 0,
        patient: bool = False,
        copied_per_freed: float = COPIED_PER_FREED,
    ) -> Plan:
        """The segments whose eviction frees ``to_free_bytes``, the cheapest first; fewer where there are no more.

        ``slack_bytes``: the horizon may lie so much higher than it must. What writers in turns have stored in several
        segments is cold in all of them by half; instead of copying the other half, which is next to go, it goes as well.
        ``patient``: what lies in segments that are about to be sealed is waited for, instead of taking what is younger.
        """
        wanted = to_free_bytes
        while True:
            horizon_ms = self._cold.horizon(wanted, slack_bytes)
            plan = self.plan_below(horizon_ms, to_free_bytes, copied_per_freed=copied_per_freed)
            if not plan.short_bytes or horizon_ms >= EVERYTHING_MS:
                return plan
            if patient and plan.unsealed_bytes >= plan.short_bytes:
                return plan._replace(short_bytes=0)
            wanted = max(int(wanted * _RISE), wanted + _RISE_BYTES)

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
        return Plan(horizon_ms, victims, max(0, short), unsealed, to_free_bytes)

    def gone(self, number: int) -> None:
        """The segment was evicted, or is not to be thought of any more."""
        segment = self._segments.pop(number, None)
        if segment is not None:
            self._cold.add(segment.times, segment.units, -1)
            self._forgotten(segment)

    def _forgotten(self, segment: Counted) -> None:
        """Called for each that is gone."""


assert limits.SEGMENT_MAX_BYTES < UNIT_BYTES << 32
