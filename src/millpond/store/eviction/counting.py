"""The census that eviction goes by: when it is made anew, and when only what changed is added to it.

The rule: at most a small part of the time goes into counting. A census that is a little old is true enough, because what
was used since is seen when a segment is looked at; so where there are millions of blobs all of them are counted seldom.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence

from millpond.core.clock import Clock
from millpond.store.eviction.census import Census
from millpond.store.index import Index
from millpond.store.room.space import Space
from millpond.store.segments.durability import segments_of
from millpond.store.uses.table import Uses

log = logging.getLogger(__name__)
_SHARE = 50
"""At most one part in so many of the time goes into counting all blobs, once that takes longer than a moment."""
_SHORT_SHARE = 4
"""The same while not enough can go: what was unpinned meanwhile is found only so."""
_CHEAP_SECONDS = 0.02
_REFRESHED_SHARE = 3
_LET_GO_SECONDS = 1.0


class Counting:
    """Keeps one census. Not for several threads."""

    def __init__(self, index: Index, uses: Uses, space: Space, directory: str, clock: Clock) -> None:
        self._index = index
        self._uses = uses
        self._space = space
        self._directory = directory
        self._clock = clock
        self._census: Census | None = None
        self._made = 0.0
        self._cost = 0.0
        self._let_gos: Counter[int] = Counter()
        """Segments that did not go when they were to, and how often that was of late."""
        self._let_gos_since = 0.0

    @property
    def last(self) -> Census:
        """What was counted last; something must have been."""
        assert self._census is not None
        return self._census

    def swept(self, number: int, *, is_gone: bool) -> None:
        """A segment was looked at; it is not to be thought of any more, or not before it is counted again."""
        self.last.gone(number)
        if not is_gone:
            self._let_gos[number] += 1

    def young_enough(self) -> Census:
        """A census that is young enough for its price."""
        if self._census is None or self._age() > _SHARE * self._cost:
            return self.anew()
        return self._census

    def up_to_date(self, rows: Sequence[bytes] = ()) -> Census:
        """A census that knows what happened since; ``rows``: to which names.

        Where there are millions of blobs, only what changed is counted: to count all of them takes longer than writers
        should have to wait.
        """
        census = self.young_enough()
        if self._cost < _CHEAP_SECONDS:
            return self.anew()
        places = segments_of(self._index, rows)
        if places is None or census.blobs_in(places) > census.blobs // _REFRESHED_SHARE:
            return self.anew()
        census.update(self._clock())
        census.refresh(places)
        self._leave_alone(census)
        return census

    def may_be_anew(self) -> bool:
        """Whether it is worth counting all, where not enough can go."""
        return self._age() > _SHORT_SHARE * self._cost

    def anew(self) -> Census:
        """Count all."""
        begun = time.monotonic()
        census = self.all()
        self._leave_alone(census)
        self._made = time.monotonic()
        self._cost = self._made - begun
        log.debug("counted %d blobs in %.3f s", census.blobs, self._cost)
        return census

    def all(self, *, ignore_leases: bool = False) -> Census:
        """Count all, also what was let go a moment ago: for those who wait however long it takes."""
        self._census = Census(
            self._index,
            self._uses,
            self._directory,
            now_ms=self._clock(),
            leased_limit_bytes=self._space.quota_bytes // 2,
            full_bytes=self._space.segment_bytes * 3 // 4,  # a record that needs more has a segment of its own
            ignore_leases=ignore_leases,
        )
        return self._census

    def _age(self) -> float:
        return time.monotonic() - self._made

    def _leave_alone(self, census: Census) -> None:
        """Think no more, for a moment, of what was let go again though all was known: something is new there each time."""
        if time.monotonic() - self._let_gos_since > _LET_GO_SECONDS:
            self._let_gos.clear()
            self._let_gos_since = time.monotonic()
        for number, times in self._let_gos.items():
            if times > 1:
                census.gone(number)
