"""How long the files of databases may be: rows ``file:NAME`` of the ledger.

A database grows when it is written to, by what is known only afterwards. So it is allowed to before, as far as it might
need (``disk.blocks``), and what it was allowed and does not take yet is *ahead*. The rule: what is ahead counts as taken.
"""

import os
from collections.abc import Mapping

from millpond.disk.group_writer import Transaction
from millpond.store.room.ledger import Ledger

_FILE = b"file:"


class Databases:
    """The rows of one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def allowed(self, txn: Transaction, path: str) -> int:
        """How long the file of the environment in ``path`` may be; 0: nothing was said of it yet."""
        return self._ledger.get(txn, _row(path))

    def allow(self, txn: Transaction, path: str, end_bytes: int) -> None:
        """Let it be so long."""
        self._ledger.put(txn, _row(path), end_bytes)

    def ahead_bytes(self, txn: Transaction, taken: Mapping[str, int]) -> int:
        """How much more they may take than they do."""
        return sum(max(0, self.allowed(txn, path) - size_bytes) for path, size_bytes in taken.items())


def _row(path: str) -> bytes:
    return _FILE + os.path.basename(path).encode()
