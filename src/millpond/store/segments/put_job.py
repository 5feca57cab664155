"""A batch on its way into the store, as the thread that writes the index does it."""

from collections.abc import Sequence
from typing import Any

from millpond.core.digest import Digest
from millpond.core.errors import NoSpace
from millpond.core.outcome import Outcome
from millpond.disk.blocks import ROWS
from millpond.disk.group_writer import Transaction
from millpond.store.interface import Bytes
from millpond.store.segments.writer import Appended, SegmentWriter


class PutJob:
    """A batch of verified blobs on its way in."""

    def __init__(self, writer: SegmentWriter, blobs: Sequence[tuple[Digest, Bytes]]) -> None:
        self.outcome: Outcome[Any] = Outcome()
        self.rows = ROWS + len(blobs)
        self._writer = writer
        self._blobs = blobs
        self._appended = Appended([], {}, 0)
        self._spent_bytes = 0

    def prepare(self) -> None:
        """Append."""
        self._appended = self._writer.append(self._blobs)

    def apply(self, txn: Transaction) -> dict[Digest, NoSpace]:
        """List; those for which there was no room."""
        self._spent_bytes = self._writer.list_placed(txn, self._appended.placed)
        self._writer.spend(txn, self._spent_bytes)
        return self._appended.refused

    def committed(self) -> None:
        """Account."""
        self._writer.spent(self._spent_bytes, self._appended)

    def failed(self) -> None:
        """Remove what nobody will list."""
        self._writer.forsake(self._appended)
