"""What follows from all that a transaction changes, written once at its end.

A commit takes the names of many pushes along. What it must note beside them (how much names hold, which of them changed,
its own number) is the same few rows for one name and for fifty.
"""

from collections.abc import Callable, Iterable

import lmdb

from millpond.core.errors import NoSpace
from millpond.names import verification
from millpond.names.changes import Changes
from millpond.names.room import Room


class Consequences:
    """Those of the transaction that is under way. For the one thread that writes."""

    def __init__(
        self, meta: lmdb._Database, room: Room, changes: Changes, limit_bytes: Callable[[], int] | None
    ) -> None:
        self._meta = meta
        self._room = room
        self._changes = changes
        self._limit_bytes = limit_bytes
        self._transaction: lmdb.Transaction[bytes] | None = None
        self._rows: list[bytes] = []
        self._grown_bytes = 0

    def changed(self, transaction: "lmdb.Transaction[bytes]", rows: Iterable[bytes], grown_bytes: int) -> None:
        """``rows`` of the bindings were written or removed, and take so much more together or, below zero, less."""
        if transaction is not self._transaction:  # the one before failed, if it has left anything
            self._transaction, self._rows, self._grown_bytes = transaction, [], 0
        self._rows += rows
        self._grown_bytes += grown_bytes

    def write(self, transaction: "lmdb.Transaction[bytes]") -> None:
        """The last thing in a transaction.

        Raises:
            NoSpace: names would hold more than they may.
        """
        if transaction is self._transaction:
            self._transaction = None
            held_bytes = self._room.changed(transaction, self._grown_bytes)
            self._changes.note(transaction, self._rows)
            if self._limit_bytes is not None and self._grown_bytes > 0 and held_bytes > self._limit_bytes():
                raise NoSpace(
                    f"names hold all of the {self._limit_bytes()} bytes that the quota leaves them, and none could give"
                    " way yet: try again in a minute; if it goes on, raise the quota or remove pins"
                )
        verification.sign(transaction, self._meta)
