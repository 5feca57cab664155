"""Room that nobody needs: what may be stored before something else has to go for it.

A client that pushes has the least recently used go. Whoever brings old content must not, because what it brings may be
older than what would go. So it asks here first, and the store that it writes to waits for no room (``store.room.waiting``).
"""

from collections.abc import Sequence

from millpond.core.digest import Digest
from millpond.store.repository.layout import Layout
from millpond.store.room.costs import INDEX_BYTES, SEGMENT_EXTRA_BYTES
from millpond.store.room.space import Space
from millpond.store.room.taken import Taken
from millpond.store.segments.format import FOOTER_ENTRY_BYTES, record_bytes

_NAME_BYTES = 192 << 10
"""What a name and the notes of its use may add to the databases and logs: these get their blocks ahead, some at once."""


class Spare:
    """Looks at the room of a repository, whoever else writes to it."""

    def __init__(self, space: Space, layout: Layout) -> None:
        self._space = space
        self._taken = Taken(layout)

    def bytes(self) -> int:
        """How much is left before eviction begins; 0 or less when it has begun."""
        pressure = self._space.pressure()
        taken = pressure.used_bytes - self._taken.overhead_bytes() + pressure.claimed_bytes
        return pressure.limit_bytes - self._space.head_room_bytes() - taken

    def fits(self, blobs: Sequence[Digest]) -> bool:
        """Whether a name that needs these blobs anew finds room beside what is there."""
        return self._cost_bytes(blobs) <= self.bytes()

    def could_fit(self, blobs: Sequence[Digest]) -> bool:
        """Whether it would in an empty cache."""
        return self._cost_bytes(blobs) <= self._space.largest_blob_bytes - self._space.head_room_bytes()

    def _cost_bytes(self, blobs: Sequence[Digest]) -> int:
        segment_bytes = self._space.segment_bytes
        cost = _NAME_BYTES + 2 * SEGMENT_EXTRA_BYTES
        twice = 0
        for _, size_bytes in blobs:
            record = record_bytes(size_bytes)
            alone = record * 4 > segment_bytes
            cost += record + FOOTER_ENTRY_BYTES + INDEX_BYTES
            cost += SEGMENT_EXTRA_BYTES if alone else SEGMENT_EXTRA_BYTES * record * 4 // (3 * segment_bytes) + 1
            twice = max(twice, 0 if alone else record)  # a streamed one is copied into a segment with others
        return cost + twice
