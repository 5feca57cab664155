"""What must be true before a name may be written, and whether it still is.

A push (``services.assets``) goes: walk and promise; :meth:`Durability.settle`; commit the name; :meth:`remember`.
So blobs cost no sync of their own, and an acknowledged name survives power loss with everything it refers to (I2).
"""

import os
import struct
from collections.abc import Sequence

from millpond.core.digest import Digest
from millpond.core.errors import BlobNotFound, MillpondError, NotReady, WouldBlock
from millpond.disk.group_writer import GroupWriter, Transaction, Work
from millpond.store.index import Entry, Index, SegmentRow
from millpond.store.interface import Footprint
from millpond.store.sealing import Sealer
from millpond.store.segment_files import SegmentFiles
from millpond.store.segment_format import Damaged, record_bytes

_PLACE = struct.Struct("<II")
_STAMP_BYTES = 16


class Durability:
    """Syncs segments for pushes, and keeps the ``closures`` table."""

    def __init__(self, index: Index, index_writer: GroupWriter, files: SegmentFiles, sealer: Sealer) -> None:
        self._index = index
        self._index_writer = index_writer
        self._files = files
        self._sealer = sealer

    def settle(self, digests: Sequence[Digest], *, wait: bool) -> Footprint:
        """Make all of ``digests`` durable; where they lie, as of one fresh look after that.

        Raises:
            BlobNotFound: one is gone.
            NotReady: a disk refused to sync.
            WouldBlock: something must be synced, and ``wait`` is False.
        """
        needed = self._needed(digests)
        if needed and not wait:
            raise WouldBlock
        synced = {number: self._sync(number) for number in needed}
        if not any(synced.values()):
            with self._index.reading() as txn:
                return self._look_again(txn, digests)

        def apply(txn: Transaction) -> Footprint:
            for number, end in synced.items():
                row = self._index.segment(txn, number)
                if end and row is not None and row.synced_to < end:
                    self._index.put_segment(txn, number, row._replace(synced_to=end))
            return self._look_again(txn, digests)

        return self._index_writer.run(apply)

    def _needed(self, digests: Sequence[Digest]) -> dict[int, int]:
        """The segments that must be synced: number to the end of what is needed of it."""
        with self._index.reading() as txn:
            found = self._index.find(txn, [digest.key for digest in digests])
            ends: dict[int, int] = {}
            for value in found.values():
                entry = Entry.decode(value)
                end = entry.offset + record_bytes(entry.size_bytes)
                ends[entry.segment] = max(end, ends.get(entry.segment, 0))
            rows = {number: self._index.segment(txn, number) for number in ends}
        return {number: end for number, end in ends.items() if (row := rows[number]) and row.synced_to < end}

    def _sync(self, number: int) -> int:
        """Sync a segment, whoever writes it; up to where it is durable now."""
        with self._index.reading() as txn:
            row = self._index.segment(txn, number)
        if row is None:
            return 0
        try:
            file = self._files.get(number)
            os.fdatasync(file.descriptor)
            if not row.synced_to:
                self._sealer.sync_directory()
        except (FileNotFoundError, Damaged) as failure:
            self._sealer.suspect(number, failure)  # if it was not evicted meanwhile
            return 0
        except OSError as failure:
            self._sealer.suspect(number, failure)
            raise NotReady("the cache could not write to its disk: try again, and tell its maintainer") from None
        return row.end

    def _look_again(self, txn: Transaction, digests: Sequence[Digest]) -> Footprint:
        found = self._index.find(txn, [digest.key for digest in digests])
        rows: dict[int, SegmentRow] = {}
        for digest in digests:
            value = found.get(digest.key)
            entry = Entry.decode(value) if value is not None else None
            if entry is None or entry.size_bytes != digest.size_bytes:
                raise BlobNotFound(f"blob {digest} is not in this cache")
            row = rows.get(entry.segment) or self._index.segment(txn, entry.segment)
            assert row is not None  # find() has seen it in this very transaction
            rows[entry.segment] = row
            if row.synced_to < entry.offset + record_bytes(entry.size_bytes):
                # It moved, or was lost and uploaded again, since it was synced.
                raise BlobNotFound(f"blob {digest} was replaced meanwhile")
        return Footprint(tuple(sorted((number, row.incarnation) for number, row in rows.items())))

    def remember(self, row: bytes, stamp: bytes, footprint: Footprint) -> None:
        """Write a closure's row."""
        value = stamp + b"".join(_PLACE.pack(*place) for place in footprint.places)
        self._index_writer.submit_lazily(lambda txn: txn.put(row, value, db=self._index.closures))

    def intact(self, row: bytes, stamp: bytes) -> bool:
        """Whether all segments of the closure are as they were when it was last walked."""
        with self._index.reading() as txn:
            value = txn.get(row, db=self._index.closures)
            if value is None or value[:_STAMP_BYTES] != stamp:
                return False
            for number, incarnation in _PLACE.iter_unpack(value[_STAMP_BYTES:]):
                segment = self._index.segment(txn, number)
                if segment is None or not segment.holds or segment.incarnation != incarnation:
                    return False
        return True

    def quarantine(self, digest: Digest, entry: Entry) -> None:
        """Delete a damaged blob's entry, if it still points there, and have its closures walked again."""

        def apply(txn: Transaction) -> None:
            row = self._index.segment(txn, entry.segment)
            if txn.get(digest.key, db=self._index.blobs) == entry.encode():
                txn.delete(digest.key, db=self._index.blobs)
                if row is not None:
                    size = record_bytes(entry.size_bytes)
                    row = row._replace(
                        live_bytes=max(0, row.live_bytes - size),
                        live_count=max(0, row.live_count - 1),
                        incarnation=row.incarnation + 1,
                    )
                    self._index.put_segment(txn, entry.segment, row)

        try:
            self._index_writer.submit(Work(apply))
        except MillpondError:
            return  # closing: the next read finds the damage again
