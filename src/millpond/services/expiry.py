"""Names that are worth nothing any more: expired, broken for a day, or too many.

A name is a cache entry like its blobs: it goes when nobody can use it. Names may hold a tenth of the quota; before they
do, those that were used least recently go, and only if none can go is a push refused. The rule: a name is broken only
if the index says that a blob is not held; whatever could not be read is no reason to remove anything. Pins are spared
by the second rule, not by the first: a broken name keeps nothing.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.names import Name
from millpond.names.binding import Binding
from millpond.names.interface import KeptNames
from millpond.names.notes import Broken
from millpond.services.careful import Careful, Unknown
from millpond.store.interface import BlobStore

log = logging.getLogger(__name__)
_STEP_SECONDS = 0.2
_PAUSE_SECONDS = 2.0
_LOOK_SECONDS = 1.0
_ROUND_MS = 3_600_000
"""All names are looked at once in so long."""
_FIRST_MS = 600_000
"""Who has just begun has better things to do."""
_TOO_FULL = (1 + limits.NAMES_KEPT_SHARE) / 2
_AT_ONCE = 4096

Intact = Callable[[bytes, bytes], bool]
"""Whether the closure of a name's row and binding's stamp is known to be whole, without a walk and without a promise."""


class ExpiryDuty:
    """Removes names whose time is over."""

    name = "expiry of names"

    def __init__(
        self,
        names: KeptNames,
        blobs: BlobStore,
        *,
        intact: Intact,
        last_used_ms: Callable[[bytes], int | None],
        pinned: Callable[[bytes], bool],
        limit_bytes: Callable[[], int],
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``blobs`` promises nothing and notes no use. ``last_used_ms`` and ``pinned`` are asked by ``Name.row``."""
        self._names = names
        self._careful = Careful(blobs)
        self._intact = intact
        self._last_used_ms = last_used_ms
        self._pinned = pinned
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._monotonic = monotonic
        self._round: Iterator[None] | None = None
        self._round_at_ms = clock() + _FIRST_MS - _ROUND_MS
        self._said_full = False

    def run(self) -> float:
        """Look at some names, and see to it that they are not too many."""
        self._keep_the_bound()
        if self._round is None:
            if self._clock() - self._round_at_ms < _ROUND_MS:
                return _LOOK_SECONDS
            self._round_at_ms = self._clock()
            self._round = self._look_at_all()
        deadline = self._monotonic() + _STEP_SECONDS
        try:
            for _ in self._round:
                if self._monotonic() >= deadline:
                    return _PAUSE_SECONDS
        except BaseException:
            self._round = None
            raise
        self._round = None
        return _LOOK_SECONDS

    # -- too many ---------------------------------------------------------------------------------------------------

    def _keep_the_bound(self) -> None:
        limit_bytes = self._limit_bytes()
        held_bytes = self._names.held_bytes()
        if held_bytes <= limit_bytes * _TOO_FULL:
            self._said_full = False
            return
        ages = self._least_recently_used()
        removed = oldest_ms = 0
        while ages and held_bytes > limit_bytes * limits.NAMES_KEPT_SHARE:
            excess = 1 - limit_bytes * limits.NAMES_KEPT_SHARE / held_bytes
            enough = int(excess * len(ages)) + 1  # roughly; the rest comes round again
            batch = [ages.pop() for _ in range(min(enough, _AT_ONCE, len(ages)))]
            oldest_ms = batch[-1][0]
            removed += len(
                self._names.unbind_many(list(filter(None, map(self._names.entry, (row for _, row in batch)))))
            )
            held_bytes = self._names.held_bytes()
        if removed:
            log.warning(
                "names hold all that they may (a tenth of the quota, %d bytes): the %d least recently used were removed,"
                " last used up to %.1f days ago",
                limit_bytes,
                removed,
                (self._clock() - oldest_ms) / 86_400_000,
            )
        if held_bytes > limit_bytes * _TOO_FULL and not self._said_full:
            self._said_full = True
            log.warning("names hold %d of the %d bytes that they may, and all are pinned", held_bytes, limit_bytes)

    def _least_recently_used(self) -> list[tuple[int, bytes]]:
        """When each name that may go was last used, and its row; the least recently used last."""
        ages = [
            (max(binding.pushed_at_ms, self._last_used_ms(row) or 0), row)
            for row, binding in ((name.row, binding) for name, binding in self._names.names())
            if not self._pinned(row)
        ]
        return sorted(ages, reverse=True)

    # -- broken or expired ------------------------------------------------------------------------------------------

    def _look_at_all(self) -> Iterator[None]:
        marks = self._names.broken.all()
        changes: dict[bytes, Broken | None] = dict.fromkeys(marks)  # unless it is seen again
        over: list[tuple[Name, Binding]] = []
        for name, binding in self._names.names():
            row, now_ms = name.row, self._clock()
            mark = marks.get(row)
            if binding.expires_at_ms is not None and binding.expires_at_ms <= now_ms:
                over.append((name, binding))
            else:
                mark = self._judged(name, binding, mark, now_ms)
                if mark is not None and now_ms - mark.since_ms >= limits.BROKEN_MS:
                    over.append((name, binding))
                elif mark == marks.get(row):
                    changes.pop(row, None)
                else:
                    changes[row] = mark
            yield
        for start in range(0, len(over), _AT_ONCE):
            self._remove(over[start : start + _AT_ONCE])
            yield
        self._names.broken.change(changes)

    def _judged(self, name: Name, binding: Binding, mark: Broken | None, now_ms: int) -> Broken | None:
        """Since when the binding is broken; None when it is whole. What cannot be read now is as it was, and younger.

        A mark of an earlier binding says nothing about this one.
        """
        stamp = binding.stamp.hex()
        if mark is not None and mark.stamp != stamp:
            mark = None
        if binding.foreign or self._intact(name.row, binding.stamp):
            return None
        try:
            found = self._careful.closure(name, binding)
        except Unknown as why:
            log.debug("%s cannot be judged now: %s", name.key, why)
            return None if mark is None else Broken(max(mark.since_ms, now_ms - limits.BROKEN_MS + 1), stamp)
        return None if found is not None else mark or Broken(now_ms, stamp)

    def _remove(self, over: Sequence[tuple[Name, Binding]]) -> None:
        removed = self._names.unbind_many(over)
        if removed:
            log.info(
                "%d names were removed that had expired or were broken for a day, the first of them %s",
                len(removed),
                removed[0][0].key,
            )
