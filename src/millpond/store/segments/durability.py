"""What must be true before a name may be written, and whether it still is.

A push (``services.assets``) goes: walk and promise; :meth:`Durability.settle`; commit the name; :meth:`remember`.
So blobs cost no sync of their own, and an acknowledged name survives power loss with everything it refers to (I2).
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from millpond.core.digest import Digest
from millpond.core.errors import BlobNotFound, MillpondError, NotReady, WouldBlock
from millpond.disk.blocks import ROWS
from millpond.disk.group_writer import GroupWriter, Transaction, Work
from millpond.store.care.quarantine import quarantine
from millpond.store.index import ENTRY, Entry, Index
from millpond.store.interface import Footprint
from millpond.store.segments import closure_rows
from millpond.store.segments.files import SegmentFiles
from millpond.store.segments.format import Damaged, record_bytes
from millpond.store.segments.sealing import Sealer


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
        with self._index.reading() as txn:
            found = self._index.find(txn, [digest.key for digest in digests])
            needed = self._needed(txn, found)
            if not needed:
                return self._footprint(txn, digests, found)
        if not wait:
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

        return self._index_writer.run(apply, rows=ROWS + len(synced))

    def _needed(self, txn: Transaction, found: Mapping[bytes, bytes]) -> dict[int, int]:
        """The segments that must be synced: number to the end of what is needed of it."""
        ends = _ends(found)
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
        return self._footprint(txn, digests, self._index.find(txn, [digest.key for digest in digests]))

    def _footprint(self, txn: Transaction, digests: Sequence[Digest], found: Mapping[bytes, bytes]) -> Footprint:
        # These loops run once per blob of an artifact.
        sizes = dict(zip(found, [size for _, _, size, _ in _unpacked(found)], strict=True))
        get = sizes.get
        for key, size_bytes in digests:
            if get(key) != size_bytes:
                raise BlobNotFound(f"blob {Digest(key, size_bytes)} is not in this cache")
        places = []
        for number, end in _ends(found).items():
            row = self._index.segment(txn, number)
            assert row is not None  # find() has seen it in this very transaction
            if row.synced_to < end:
                # It moved, or was lost and uploaded again, since it was synced.
                raise BlobNotFound("a blob of this name was replaced meanwhile")
            places.append((number, row.incarnation))
        return Footprint(tuple(sorted(places)))

    def remember(self, row: bytes, stamp: bytes, footprint: Footprint) -> None:
        """Write a closure's row."""
        value = closure_rows.encoded(stamp, footprint.places)
        rows = ROWS + len(value) // 128
        self._index_writer.submit_lazily(lambda txn: txn.put(row, value, db=self._index.closures), rows=rows)

    def intact(self, row: bytes, stamp: bytes) -> bool:
        """Whether all segments of the closure are as they were when it was last walked."""
        return intact(self._index, row, stamp)

    def quarantine(self, digest: Digest, entry: Entry) -> None:
        """Delete a damaged blob's entry, if it still points there, and have its closures walked again."""
        segments = self._files.directory
        try:
            self._index_writer.submit(Work(lambda txn: quarantine(self._index, segments, txn, digest.key, entry)))
        except MillpondError:
            return  # closing: the next read finds the damage again


def _unpacked(found: Mapping[bytes, bytes]) -> Iterator[tuple[int, int, int, int]]:
    """Entries, as plain tuples."""
    return ENTRY.iter_unpack(b"".join(found.values()))


def _ends(found: Mapping[bytes, bytes]) -> dict[int, int]:
    """Per segment the end of what is needed of it."""
    ends: dict[int, int] = {}
    get = ends.get
    for number, offset, size, _ in _unpacked(found):
        end = offset + record_bytes(size)
        if end > get(number, 0):
            ends[number] = end
    return ends


def intact(index: Index, row: bytes, stamp: bytes) -> bool:
    """Whether all segments of the closure of the binding ``stamp`` are as they were when it was last walked."""
    with index.reading() as txn:
        value = txn.get(row, db=index.closures)
        if value is None or not closure_rows.is_of(value, stamp):
            return False
        for number, incarnation in closure_rows.places_of(value):
            segment = index.segment(txn, number)
            if segment is None or not segment.holds or segment.incarnation != incarnation:
                return False
    return True


def segments_of(index: Index, rows: Iterable[bytes]) -> set[int] | None:
    """The segments in which the closures of these names lie; None when that is not known of all of them."""
    places: set[closure_rows.Place] = set()
    with index.reading() as txn:
        for row in rows:
            value = txn.get(row, db=index.closures)
            if value is None:
                return None
            places.update(closure_rows.places_of(value))
        for number, incarnation in places:
            segment = index.segment(txn, number)
            if segment is None or segment.incarnation != incarnation:
                return None  # something of it was moved meanwhile
    return {number for number, _ in places}
