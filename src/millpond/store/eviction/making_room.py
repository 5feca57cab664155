"""Making room: when, how much, and what is said of it. How a segment goes is ``store.eviction.sweeping``'s business.

Upkeep looks at the ledger many times per second (:meth:`Eviction.make_room`). When something must go, it takes in what
was used meanwhile, chooses by a census (``store.eviction.horizon``) and sweeps segments until the pressure is gone.

The rule: before anything is chosen, every promise that was being made is in its log (the *fence*), the logs are merged,
and names that were used are applied to their closures, so far as that could change the choice. So what goes is the least
recently used by what is known at that moment; and what was used after it is found under the lock.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.store.eviction.census import Census
from millpond.store.eviction.counting import Counting
from millpond.store.eviction.evicted import Evicted, Teller
from millpond.store.eviction.horizon import EVERYTHING_MS, Plan
from millpond.store.eviction.promise_lock import PromiseLock
from millpond.store.eviction.sweeping import EVERYTHING, End, Rule, Sweeper, Swept
from millpond.store.index import Index, SegmentState
from millpond.store.repository.layout import Layout
from millpond.store.room.departing import Departing
from millpond.store.room.pressure import Held
from millpond.store.room.space import Space
from millpond.store.room.spare import Spare
from millpond.store.uses.merging import Merger, TouchReader
from millpond.store.uses.table import Uses

log = logging.getLogger(__name__)
_BUSY_SECONDS, _IDLE_SECONDS = 0.01, 0.1
_STUCK_SECONDS = 0.15
"""How soon to look again when nothing can go; those who wait are told each time."""
_PATIENCE_SECONDS = 0.4
_ROUND_SECONDS = 0.5
_SUSPECTS_SECONDS = 10.0
_EPISODE_SECONDS = 10.0
_PAUSE_SECONDS = 2.0
"""Evictions that follow each other more closely than this are one line in the log, for at most ten seconds."""
_SLACK_SEGMENTS = 2
_AHEAD_SEGMENTS = 3
_SPARE_SEGMENTS = 2
"""With less room than that it begins again: writers fill one while the first of what goes is chosen."""
_COLD_SHARE = 5
"""What goes before its time is at most one part in so many of what may go at all."""
_EXACT_BELOW_BYTES = 256 * limits.MIB
_APPLY_ROUNDS = 8
_HARDLY_COPIED = 0.01
"""Per byte freed, as a census counts, which rounds: nothing at all."""


class ApplyNames(Protocol):
    """Carries the use of names over to their closures."""

    def __call__(self, horizon_ms: int, *, end_leases: bool) -> Sequence[bytes]:
        """Note, for the blobs of every name that was used since ``horizon_ms``, a use that is no older.

        With ``end_leases``, the leases of what was bound end too. The rows of the names that this concerned.
        """
        ...


class Eviction:
    """Evicts for one repository. Used by whoever holds ``upkeep.lock``; not for several threads.

    ``let_go``: closes what this process has open of segments that are gone, so that their blocks return.
    """

    name = "eviction"

    def __init__(
        self,
        layout: Layout,
        index: Index,
        uses: Uses,
        space: Space,
        departing: Departing,
        promises: PromiseLock,
        sweeper: Sweeper,
        *,
        apply_names: ApplyNames,
        let_go: Callable[[], None],
        clock: Clock,
        warn_age_ms: int,
    ) -> None:
        self._layout = layout
        self._index = index
        self._uses = uses
        self._space = space
        self._departing = departing
        self._promises = promises
        self._sweeper = sweeper
        self._apply_names = apply_names
        self._clock = clock
        self._teller = Teller(index, uses, clock, warn_age_ms=warn_age_ms)
        self._merger = Merger(layout.touch, uses, clock)
        self._spare = Spare(space, layout)
        self._goes_ahead = False
        self._counting = Counting(index, uses, space, layout.segments, clock)
        self._let_go = let_go
        self._finished = False
        self._episode = Evicted()
        self._episode_began = 0.0
        self._busy_until = 0.0
        self._looked_for_suspects = float("-inf")
        self._gone: dict[int, int] = {}
        self._stuck = (-1, 0.0)
        """How much lay in segments that were not sealed when nothing could go, and since when."""
        self._patient = True
        """Whether to wait for segments that are being sealed, instead of taking what is younger."""

    # -- as a duty --------------------------------------------------------------------------------------------------

    def run(self) -> float:
        """Make room if there must be; the seconds until it is worth another look."""
        if not self._finished:
            self._finish()
        self._finished = False  # unless this round ends well
        seconds = self._round()
        self._finished = True
        return seconds

    def _finish(self) -> None:
        """Go on with what a predecessor, or a round that failed, left half done."""
        finished = self._sweeper.finish()
        if finished:
            log.info("%d segments whose removal was interrupted are gone", finished)
        self._departing.take_over()

    def _round(self) -> float:
        self._let_go()
        self._departing.collect()
        if time.monotonic() - self._looked_for_suspects > _SUSPECTS_SECONDS:
            self._finish()  # a command that was killed leaves things half done as well
            self._sweep_suspects()
            self._looked_for_suspects = time.monotonic()
        pressure = self._space.pressure(lingering_bytes=self._departing.lingering_bytes())
        to_free = pressure.to_free_bytes or self._needed_soon()
        if not to_free or not self._uses.pins_known():
            return self._rest()
        self._busy_until = time.monotonic() + _PAUSE_SECONDS
        if not self._episode_began:
            self._episode_began = time.monotonic()
        freed_bytes = self._make_room(to_free, in_haste=bool(pressure.wanted_bytes))
        if time.monotonic() - self._episode_began > _EPISODE_SECONDS:
            self._tell()
        if freed_bytes:
            self._stuck, self._patient = (-1, 0.0), True
            return _BUSY_SECONDS
        stuck = self._is_stuck()
        if stuck and not self._patient:
            self._say_what_is_in_the_way()
        self._patient = not stuck
        return _STUCK_SECONDS

    def _sweep_suspects(self) -> None:
        """Remove segments that could not be synced, whether room is needed or not.

        Nothing in them counts as held, and nothing that is made anew must take them for sound.
        """
        with self._index.reading() as txn:
            numbers = [number for number, row in self._index.all_segments(txn) if row.suspect]
        if numbers:
            touches = self._merger.reader()
            for number in numbers:
                self._sweeper.sweep(number, Rule(0, self._clock()), touches)
            self._sweeper.remove()

    def _needed_soon(self) -> int:
        """More than nothing where eviction goes ahead and room runs out again: who writes need not wait for the first of it."""
        is_busy = self._goes_ahead and time.monotonic() < self._busy_until and not len(self._departing)
        return int(is_busy and self._spare.bytes() < _SPARE_SEGMENTS * self._space.segment_bytes)

    def _rest(self) -> float:
        """Nothing has to go. Where something had to a moment ago, it soon will again: look often."""
        if time.monotonic() < self._busy_until or len(self._departing):
            return _BUSY_SECONDS
        self._tell()
        return _IDLE_SECONDS

    def _make_room(self, to_free: int, *, in_haste: bool) -> int:
        """Free so much, or what can be freed now; how much that was. ``in_haste``: somebody waits for it."""
        plan = self._chosen(to_free, ahead=True)
        self._goes_ahead = plan.wanted_bytes > to_free
        freed, due = 0, to_free if in_haste else plan.wanted_bytes
        touches = self._merger.reader()
        until = time.monotonic() + _ROUND_SECONDS
        rule = self._rule(plan.horizon_ms)
        lacked_room = False
        for victim in plan.victims:
            swept = self._sweep(victim.number, rule, touches)
            if swept.end is End.NO_ROOM:  # what went before may not be deleted yet, or still be open somewhere
                self._sweeper.remove()
                swept = self._sweep(victim.number, rule, touches)
            lacked_room |= swept.end is End.NO_ROOM
            freed += swept.freed_bytes if swept.end is End.GONE else 0
            if freed >= due:
                self._sweeper.remove()  # what goes ahead of need goes together
                due = plan.wanted_bytes
            if freed >= plan.wanted_bytes or time.monotonic() > until:
                break
        self._sweeper.remove()
        if lacked_room and not freed and not len(self._departing):
            return self._make_room_without_copying(to_free, touches)
        return freed

    def _make_room_without_copying(self, to_free: int, touches: TouchReader) -> int:
        """Let a segment go with what is young in it: databases have taken the room for copies."""
        plan = self._counting.last.plan(to_free, copied_per_freed=_HARDLY_COPIED)
        rule = self._rule(plan.horizon_ms)._replace(copied_per_freed=0.0)
        for victim in plan.victims:
            if (swept := self._sweep(victim.number, rule, touches)).end is End.GONE:
                self._sweeper.remove()
                return swept.freed_bytes
        return 0

    def _sweep(self, number: int, rule: Rule, touches: TouchReader) -> Swept:
        swept = self._sweeper.sweep(number, rule, touches)
        if swept.end is not End.NO_ROOM:
            self._counting.swept(number, is_gone=swept.end is End.GONE)
        if swept.end is End.GONE:
            self._gone[number] = rule.horizon_ms
        self._episode = self._episode.plus(swept)
        return swept

    def _rule(self, horizon_ms: int) -> Rule:
        return Rule(horizon_ms, max(self._counting.last.lease_floor_ms, self._clock()))

    def _is_stuck(self) -> bool:
        """Whether nothing can go for good: while segments are being sealed there will soon be more to choose from."""
        being_written, since = self._stuck
        if being_written != (other_bytes := self._counting.last.other_bytes):
            being_written, since = self._stuck = (other_bytes, time.monotonic())
        return time.monotonic() - since >= _PATIENCE_SECONDS

    # -- choosing ---------------------------------------------------------------------------------------------------

    def take_in(self) -> None:
        """Know everything that was used or promised up to now."""
        self._promises.fence()
        self._merger.merge()

    def _chosen(self, to_free: int, *, ahead: bool = False) -> Plan:
        """What to evict to free so much; ``ahead``: and more, so that rounds are few, each of which begins like this."""
        self.take_in()
        counting = self._counting
        census = counting.young_enough()
        if ahead and self._is_large and not self._before_its_time(_AHEAD_SEGMENTS, census):
            census = counting.up_to_date()  # more is leased since than may be, so what was leased first may go
        plan = self._planned(census, to_free, ahead)
        for _ in range(_APPLY_ROUNDS):
            if plan.short_bytes or not plan.victims:
                # What is left of a census from which much has gone already says nothing of the rest.
                plan = self._planned(counting.up_to_date(), to_free, ahead)
                if plan.short_bytes and counting.may_be_anew():
                    plan = self._planned(counting.anew(), to_free, ahead)
            # A lease is in the way only of what was used within its time.
            leases_matter = bool(plan.short_bytes) or plan.horizon_ms > self._clock() - limits.LEASE_MS
            rows = self._apply_names(plan.horizon_ms, end_leases=leases_matter)
            if not rows:
                break
            plan = self._planned(counting.up_to_date(rows), to_free, ahead)
        return plan

    def _planned(self, census: Census, to_free: int, ahead: bool) -> Plan:  # noqa: FBT001 - as :meth:`_chosen`
        slack_bytes = self._before_its_time(_SLACK_SEGMENTS, census)
        more = self._before_its_time(_AHEAD_SEGMENTS, census) if ahead else 0
        if more:
            plan = census.plan(to_free + more, slack_bytes=slack_bytes)
            if not plan.short_bytes:
                return plan
        return census.plan(to_free, slack_bytes=slack_bytes, patient=self._patient)

    def _before_its_time(self, segments: int, census: Census) -> int:
        """So much may go before it must, where that does not show: not in small caches, nor where little may go at all."""
        size = segments * self._space.segment_bytes
        return size if self._is_large and census.cold_bytes >= _COLD_SHARE * size else 0

    @property
    def _is_large(self) -> bool:
        return self._space.quota_bytes >= _EXACT_BELOW_BYTES

    # -- on demand --------------------------------------------------------------------------------------------------

    def evict(
        self, *, older_than_ms: int | None = None, to_bytes: int | None = None, everything: bool = False
    ) -> Evicted:
        """Evict what was last used before a time (ms since 1970), or until only so much is taken, or all but pins.

        The caller holds ``upkeep.lock``, and pins are known.

        Raises:
            MillpondError, OSError, lmdb.Error: it could not be done, or not wholly; doing it again goes on.
        """
        self._finish()
        self._finished = False  # whatever comes: upkeep is to look again
        self.take_in()
        if everything:
            census = self._counting.all(ignore_leases=True)
            self._drop_from_open()
            self._sweep_all(census.plan_below(EVERYTHING_MS, EVERYTHING_MS, copied_per_freed=EVERYTHING_MS), EVERYTHING)
        elif older_than_ms is not None:
            self._apply_names(older_than_ms, end_leases=True)
            census = self._counting.all()
            self._sweep_all(census.plan_below(older_than_ms, EVERYTHING_MS), self._rule(older_than_ms))
        elif to_bytes is not None:
            while (to_free := self._space.pressure().used_bytes - to_bytes) > 0:
                before = self._episode.segments
                plan = self._chosen(to_free)
                self._sweep_all(plan, self._rule(plan.horizon_ms))
                if self._episode.segments == before:
                    break
        self._let_go()
        self._departing.collect()
        return self._tell(remember=False)

    def _sweep_all(self, plan: Plan, rule: Rule) -> None:
        touches = self._merger.reader()
        for victim in plan.victims:
            self._sweep(victim.number, rule, touches)
        self._sweeper.remove()

    def _drop_from_open(self) -> None:
        """Take everything but pins out of the segments that are still written: it becomes dead space there."""
        with self._index.reading() as txn:
            numbers = [number for number, row in self._index.all_segments(txn) if row.state is SegmentState.OPEN]
        for number in numbers:
            dropped = self._sweeper.drop_listed(number)
            self._episode = self._episode._replace(blobs=self._episode.blobs + dropped)
            if dropped:
                self._gone[number] = EVERYTHING_MS

    # -- telling ----------------------------------------------------------------------------------------------------

    def _say_what_is_in_the_way(self) -> None:
        census = self._counting.last
        held = Held(census.pinned_bytes, census.leased_bytes, census.other_bytes)
        with self._index.writing() as txn:
            self._space.cannot_free(txn, held)

    def _tell(self, *, remember: bool = True) -> Evicted:
        evicted, self._episode = self._episode, Evicted()
        gone, self._gone = self._gone, {}
        self._episode_began = 0.0
        return self._teller.tell(evicted, gone, remember=remember) if gone else evicted

    def close(self) -> None:
        """Say what is still to be said."""
        self._tell()
