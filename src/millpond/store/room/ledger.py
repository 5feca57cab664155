"""The rows of the ``space`` table: numbers under keys, and their sums. What they mean: ``store.room.space``."""

import struct
from collections.abc import Iterator

from millpond.disk.group_writer import Transaction
from millpond.store.room.holders import lives

_U64 = struct.Struct("<Q")


class Ledger:
    """Reads and writes rows inside transactions of the index. A row of 0 is no row."""

    def __init__(self, table: object) -> None:
        self._table = table

    def get(self, txn: Transaction, key: bytes) -> int:
        """A row."""
        value: int = _U64.unpack(txn.get(key, bytes(8), db=self._table))[0]
        return value

    def put(self, txn: Transaction, key: bytes, size_bytes: int) -> None:
        """Write a row."""
        if size_bytes:
            txn.put(key, _U64.pack(size_bytes), db=self._table)
        else:
            txn.delete(key, db=self._table)

    def add(self, txn: Transaction, key: bytes, size_bytes: int) -> None:
        """Add to a row, which never falls below 0."""
        self.put(txn, key, max(0, self.get(txn, key) + size_bytes))

    def move(self, txn: Transaction, key: bytes, other: bytes) -> None:
        """Have the row stand under another key."""
        self.put(txn, other, self.get(txn, key))
        self.put(txn, key, 0)

    def rows(self, txn: Transaction, prefix: bytes) -> Iterator[tuple[bytes, int]]:
        """All rows whose keys begin so."""
        with txn.cursor(self._table) as cursor:
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not key.startswith(prefix):
                        return
                    yield key, _U64.unpack(value)[0]

    def total(self, txn: Transaction, prefix: bytes, *, living: bool = False) -> int:
        """The sum of all rows whose keys begin so; with ``living`` without those of processes that died."""
        return sum(size for key, size in self.rows(txn, prefix) if not living or lives(key.removeprefix(prefix)))

    def clear(self, txn: Transaction) -> None:
        """Remove all rows."""
        txn.drop(self._table, delete=False)
