"""Which names changed of late: a short memory that upkeep reads instead of all names.

Table ``changes``: a growing number (8 bytes, big-endian) -> the row that was bound or unbound. The rule: it holds the
last ``limits.CHANGES_KEPT`` without a gap, or a few more, so whoever finds that it does not reach back looks at everything instead.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import lmdb

from millpond.core import limits

_NUMBER_BYTES = 8
_FORGOTTEN_AT_ONCE = 64
"""As good as a page of them: one more page to write in each commit would cost it a twentieth."""
Reading = Callable[[], AbstractContextManager["lmdb.Transaction[bytes]"]]


class Changes:
    """The memory. A *position* is the number of the last change that was seen."""

    def __init__(self, table: lmdb._Database | None, reading: Reading) -> None:
        self._table = table
        self._reading = reading

    def note(self, transaction: "lmdb.Transaction[bytes]", rows: Iterable[bytes]) -> None:
        """Remember ``rows``, and forget what is too old."""
        assert self._table is not None
        with transaction.cursor(self._table) as cursor:
            last = _number(cursor.key()) if cursor.last() else 0
            for number, row in enumerate(rows, last + 1):
                cursor.put(number.to_bytes(_NUMBER_BYTES, "big"), row, append=True)
                last = number
            if cursor.first() and _number(cursor.key()) <= last - limits.CHANGES_KEPT - _FORGOTTEN_AT_ONCE:
                while _number(cursor.key()) <= last - limits.CHANGES_KEPT:
                    cursor.delete()

    def position(self) -> int:
        """The number of the last change, 0 before the first."""
        if self._table is None:
            return 0
        with self._reading() as transaction, transaction.cursor(self._table) as cursor:
            return _number(cursor.key()) if cursor.last() else 0

    def since(self, position: int) -> tuple[int, list[bytes]] | None:
        """The position now and the rows that changed after ``position``, each once; None when nobody knows any more."""
        if self._table is None:
            return None
        with self._reading() as transaction, transaction.cursor(self._table) as cursor:
            if not cursor.last():
                return (0, []) if not position else None
            last = _number(cursor.key())
            cursor.first()
            if last < position or _number(cursor.key()) > position + 1:
                return None
            found = cursor.set_range((position + 1).to_bytes(_NUMBER_BYTES, "big"))
            rows = [row for _, row in cursor] if found else []
        return last, list(dict.fromkeys(rows))


def _number(key: bytes) -> int:
    return int.from_bytes(key, "big")
