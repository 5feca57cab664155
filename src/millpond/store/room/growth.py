"""What takes room beside segments and uploads gets it here: logs, databases, the ballast.

What they take is measured. The rule: whoever has something of it grow does so inside of a write transaction of the
index, or is allowed to there, after it was measured and counted in that very transaction whether there is room; and
whoever claims measures in the same way. So each of them, in whatever process, sees all that the others have taken or
may still take. Of one that is killed nothing is left over: what a log has taken is there to be measured, and what a
database may take the next one that writes to it takes.
"""

from collections.abc import Callable

from millpond.core import limits
from millpond.core.errors import NoSpace
from millpond.disk.blocks import govern, govern_no_more
from millpond.disk.group_writer import Transaction
from millpond.store.index import Index
from millpond.store.repository.layout import Layout
from millpond.store.room.space import Space
from millpond.store.room.taken import database_bytes
from millpond.store.room.waiting import Room

_STEPS = 16
"""A database is allowed one part in so many more of what is kept free for growth, so that it asks seldom."""


class Growth:
    """Lets something grow."""

    def __init__(self, index: Index, space: Space, *, for_eviction: bool = False) -> None:
        """With ``for_eviction`` all of the quota may be used; else what eviction needs to move and to write is left to it.

        Of that the index may use half, for it is written to when room was found already. What the table of uses needs is
        left by the index in any case: that is written first, and nothing goes without it.
        """
        self._index = index
        self._space = space
        self._for_eviction = for_eviction
        self._room: Room | None = None

    def _leaving(self, *, for_index: bool = False) -> int:
        space = self._space
        for_uses = space.kept_for_eviction_bytes // 2
        if self._for_eviction:
            return for_uses if for_index else 0
        return max(for_uses, space.segment_bytes // 2) if for_index else space.segment_bytes + for_uses

    def wait_in(self, room: Room) -> None:
        """Have databases wait there when there is no room for them."""
        self._room = room

    def begin(self, layout: Layout) -> Callable[[], None]:
        """Have all databases of this process grow by this, until what is returned is called."""
        self._index.grow_by(self)
        govern(layout.root, self)

        def end() -> None:
            self._index.grow_by(None)
            govern_no_more(layout.root, self)

        return end

    def rows_at_once(self) -> int:
        """How many rows one transaction changes at most."""
        return limits.rows_at_once(self._space.quota_bytes)

    def step_bytes(self) -> int:
        """How much more a database is allowed at once."""
        return limits.growth_bytes(self._space.quota_bytes) // _STEPS

    def __call__(self, size_bytes: int, grow: Callable[[], None]) -> None:
        """Do ``grow``, after which something takes so many bytes more. Not inside of a write transaction of the index.

        Raises:
            NoSpace: the quota has no room for it. Nothing was done.
            Exception: what ``grow`` raised.
        """
        with self._index.writing() as txn:
            self._space.must_hold(txn, size_bytes, leaving=self._leaving())
            grow()

    def allow(self, path: str, end_bytes: int, unused_bytes: int) -> None:
        """Let the file of another environment be so long. Not inside of a write transaction of the index.

        Raises:
            NoSpace: the quota has no room for that.
        """
        with self._index.writing() as txn:
            self.allow_within(txn, path, end_bytes, unused_bytes)

    def allow_within(self, txn: Transaction, path: str, end_bytes: int, unused_bytes: int) -> None:
        """The same inside of a write transaction of the index."""
        more = end_bytes - max(self.allowed_within(txn, path), database_bytes(path))
        if more > 0:
            share = limits.UNUSED_SHARE * (2 if self._for_eviction else 1)
            if unused_bytes > share * self._space.quota_bytes:
                raise NoSpace("a process that stands still keeps what the cache's databases have replaced")
            self._space.must_hold(txn, more, leaving=self._leaving(for_index=path == self._index.path))
        self._space.databases.allow(txn, path, end_bytes)

    def allowed(self, path: str) -> int:
        """How long the file of an environment may be."""
        with self._index.reading() as txn:
            return self.allowed_within(txn, path)

    def allowed_within(self, txn: Transaction, path: str) -> int:
        """The same inside of a transaction of the index."""
        return self._space.databases.allowed(txn, path)

    def wait(self, size_bytes: int) -> bool:
        """Wait for so much room; whether there seems to be some."""
        return self._room is not None and self._room.comes(size_bytes)
