"""How much names hold.

Pages do not tell: LMDB gives a page back only when it is almost empty, and rows are hashes, so names that go leave
gaps everywhere which the next ones fill. So each row is counted as what it takes in the long run, and the sum stands
in the table ``counters`` under ``held`` (sealed like a binding). The rule: whoever writes a row changes the sum in the
same transaction; a sum that is missing or damaged is counted anew.
"""

import lmdb

from millpond.names import values

ROW = b"held"
_BYTES = 8
_PAGE_BYTES = 4096
_INLINE_BYTES = 2000
"""A longer value has pages of its own (mdb.c, ``me_nodemax``)."""
_NODE_BYTES = 42
"""A row's key, header and offset."""


def taken_bytes(value: bytes) -> int:
    """What a row with this value takes: two thirds of a page are in use where rows come in no order."""
    if len(value) > _INLINE_BYTES:
        return _NODE_BYTES + -(-(len(value) + 16) // _PAGE_BYTES) * _PAGE_BYTES
    return (len(value) + _NODE_BYTES) * 3 // 2


class Room:
    """The sum."""

    def __init__(self, counters: lmdb._Database, bindings: lmdb._Database) -> None:
        self._counters = counters
        self._bindings = bindings

    def held_bytes(self, transaction: "lmdb.Transaction[bytes]") -> int:
        """What all names take."""
        noted = self._noted(transaction)
        if noted is not None:
            return noted
        with transaction.cursor(self._bindings) as cursor:
            return sum(taken_bytes(value) for _, value in cursor)

    def changed(self, transaction: "lmdb.Transaction[bytes]", difference: int) -> int:
        """Rows that were just written take so much more or, below zero, less; what all names take now."""
        noted = self._noted(transaction)
        held = self.held_bytes(transaction) if noted is None else max(0, noted + difference)
        transaction.put(ROW, values.seal(ROW, held.to_bytes(_BYTES, "little")), db=self._counters)
        return held

    def _noted(self, transaction: "lmdb.Transaction[bytes]") -> int | None:
        value = transaction.get(ROW, db=self._counters)
        try:
            return None if value is None else int.from_bytes(values.unseal(ROW, value), "little")
        except values.Damaged:
            return None
