"""What is said and remembered of an eviction.

The rule: one line in the log for what went together, with the bytes, how long ago they had been used, and how many names
became incomplete. The age of what goes under pressure is remembered: so long an artifact lives at the present rate. When
it falls below what the operator expects there is a warning, once a day as long as that stays so.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from millpond.core import json_text
from millpond.core.clock import Clock
from millpond.disk.blocks import pieces
from millpond.disk.group_writer import Transaction
from millpond.store.eviction.sweeping import End, Swept
from millpond.store.index import Index
from millpond.store.segments.closure_rows import places_of
from millpond.store.uses.table import Uses

log = logging.getLogger(__name__)
_LAST = b"evicted"
_WARNED = b"warned"
_DAY_MS = 86_400_000


class Evicted(NamedTuple):
    """What went, and what that took."""

    freed_bytes: int = 0
    copied_bytes: int = 0
    blobs: int = 0
    segments: int = 0
    names: int = 0
    """Names that became incomplete."""
    youngest_ms: int = 0
    """When the youngest blob that went was last used."""

    def plus(self, swept: Swept) -> "Evicted":
        """With one more segment."""
        return self._replace(
            freed_bytes=self.freed_bytes + swept.freed_bytes,
            copied_bytes=self.copied_bytes + swept.copied_bytes,
            blobs=self.blobs + swept.blobs,
            segments=self.segments + (swept.end is End.GONE),
            youngest_ms=max(self.youngest_ms, swept.youngest_ms),
        )


class LastEviction(NamedTuple):
    """What is remembered of the last eviction."""

    at_ms: int
    age_ms: int
    """How long ago the youngest of what went had been used: so long an artifact lives at the present rate."""
    freed_bytes: int


class Teller:
    """Tells of evictions."""

    def __init__(self, index: Index, uses: Uses, clock: Clock, *, warn_age_ms: int) -> None:
        self._index = index
        self._uses = uses
        self._clock = clock
        self._warn_age_ms = warn_age_ms

    def tell(self, evicted: Evicted, gone: Mapping[int, int], *, remember: bool) -> Evicted:
        """Say it; with the names that became incomplete.

        ``gone``: the segments that went, and the horizon below which blobs went with them. ``remember``: it was for lack
        of room, not because somebody asked for it, so that its age tells something.
        """
        evicted = evicted._replace(names=self._names_broken(gone))
        now = self._clock()
        age_ms = max(0, now - evicted.youngest_ms) if evicted.youngest_ms else 0
        log.info(
            "evicted %d bytes (%d blobs) last used %s ago or longer; %d names became incomplete; %d bytes were moved",
            evicted.freed_bytes,
            evicted.blobs,
            in_words(age_ms),
            evicted.names,
            evicted.copied_bytes,
        )
        if evicted.blobs and remember:
            self._uses.remember(_LAST, json.dumps(LastEviction(now, age_ms, evicted.freed_bytes)).encode())
            self._warn_if_young(now, age_ms)
        return evicted

    def _warn_if_young(self, now_ms: int, age_ms: int) -> None:
        """Once when the age falls below what was asked for, and again each day that it stays there."""
        warned = int(self._uses.remembered(_WARNED) or 0)
        if age_ms >= self._warn_age_ms:
            if warned:
                self._uses.remember(_WARNED, None)
        elif now_ms - warned >= _DAY_MS:
            log.warning(
                "what is evicted was used only %s ago, less than --warn-age %s: artifacts do not live long here,"
                " a larger quota would help",
                in_words(age_ms),
                in_words(self._warn_age_ms),
            )
            self._uses.remember(_WARNED, b"%d" % now_ms)

    def _names_broken(self, gone: Mapping[int, int]) -> int:
        """Forget where closures lay that lost a segment; of how many names something needed is gone."""
        with self._index.reading() as txn:
            rows = closures_of(self._index, txn, set(gone))
        horizon_ms = max(gone.values())
        broken = sum((use := self._uses.name(row)) is None or use.time_ms < horizon_ms for row in rows)
        for some in pieces(rows, self._index.rows_at_once()):
            with self._index.writing(rows=len(some)) as txn:
                for row in some:
                    txn.delete(row, db=self._index.closures)
        return broken


def last_eviction(uses: Uses) -> LastEviction | None:
    """What is remembered of the last eviction; None when there was none."""
    value = uses.remembered(_LAST)
    return None if value is None else LastEviction(*json_text.parse(value))


def in_words(age_ms: int) -> str:
    """``12 d``, ``5 h``, ``3 min``, ``20 s``: the largest unit of which there are at least two."""
    units: Sequence[tuple[int, str]] = ((_DAY_MS, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"))
    for unit_ms, word in units:
        if age_ms >= 2 * unit_ms:
            return f"{age_ms // unit_ms} {word}"
    return f"{age_ms} ms"


def closures_of(index: Index, txn: Transaction, numbers: set[int]) -> Sequence[bytes]:
    """The rows of the names whose noted closures lie in one of these segments."""
    rows = []
    with txn.cursor(index.closures) as cursor:
        for row, value in cursor:
            if any(place in numbers for place, _ in places_of(value)):
                rows.append(row)
    return rows
