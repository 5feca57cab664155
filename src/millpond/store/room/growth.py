"""What takes room beside segments and uploads gets it here: logs, databases, the ballast.

None of that is in the ledger; it is measured. The rule: whoever has something of it grow does so inside of a write
transaction of the index, after it was measured and counted in that very transaction whether there is room; and whoever
claims measures in the same way. So each of them, in whatever process, sees all that the others have taken, and nothing
is left over of one that is killed: what it had taken is there to be measured, and the rest never was.
"""

from collections.abc import Callable

from millpond.core import limits
from millpond.disk.blocks import govern, govern_no_more
from millpond.disk.group_writer import Transaction
from millpond.store.index import Index
from millpond.store.repository.layout import Layout
from millpond.store.room.space import Space

LEFT_PAGES = 24
"""Of the pages that the index has for its next transactions, writers leave these to eviction."""


class Growth:
    """Lets something grow. ``leaving``: how much must be free beside it."""

    def __init__(self, index: Index, space: Space, *, leaving: Callable[[], int] | None = None) -> None:
        """Without ``leaving``, room to move a segment is left, which eviction needs."""
        self._index = index
        self._space = space
        self._leaving = leaving or (lambda: space.segment_bytes)

    def begin(self, layout: Layout, *, left_pages: int = 0) -> Callable[[], None]:
        """Have all databases of this process grow by this, until what is returned is called.

        ``left_pages``: of those that the index has for its next transaction, so many are left to others.
        """
        self._index.grow_by(self.within, rows_at_once=self.rows_at_once, left_pages=left_pages)
        govern(layout.root, self)

        def end() -> None:
            # What is still to be written is little, and finds the blocks that are ahead.
            self._index.grow_by(None, rows_at_once=self.rows_at_once)
            govern_no_more(layout.root, self)

        return end

    def rows_at_once(self) -> int:
        """How many rows one transaction changes at most."""
        return limits.rows_at_once(self._space.quota_bytes)

    def __call__(self, size_bytes: int, grow: Callable[[], None]) -> None:
        """Do ``grow``, after which something takes so many bytes more. Not inside of a write transaction of the index.

        Raises:
            NoSpace: the quota has no room for it. Nothing was done.
            Exception: what ``grow`` raised.
        """
        with self._index.writing() as txn:
            self.within(txn, size_bytes, grow)

    def within(self, txn: Transaction, size_bytes: int, grow: Callable[[], None]) -> None:
        """The same inside of a write transaction of the index.

        Raises:
            NoSpace: the quota has no room for it. Nothing was done.
            Exception: what ``grow`` raised.
        """
        self._space.must_hold(txn, size_bytes, leaving=self._leaving())
        grow()
