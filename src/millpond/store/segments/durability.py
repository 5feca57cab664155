"""What must be true before a name may be written, and whether it still is.

A push (``services.assets``) goes: walk and promise; :meth:`Durability.settle`; commit the name; :meth:`remember`.
So blobs cost no sync of their own, and an acknowledged name survives power loss with everything it refers to (I2).
"""

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from millpond.core.digest import Digest
from millpond.core.errors import BlobNotFound, MillpondError, NotReady, WouldBlock
from millpond.disk.blocks import ROWS, pieces
from millpond.disk.group_writer import GroupWriter, Transaction, Work
from millpond.store.care.quarantine import quarantine
from millpond.store.index import ENTRY, Entry, Index, SegmentRow
from millpond.store.interface import Footprint, KnownClosure
from millpond.store.segments import closure_rows
from millpond.store.segments.files import SegmentFiles
from millpond.store.segments.format import Damaged, record_bytes
from millpond.store.segments.sealing import Sealer

_REMEMBERED_AT_ONCE = 16
"""So many closures are noted in one transaction; in a small cache it may find no room for more."""


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
        (look,) = self.look([digests])
        if not look.volatile:
            return _settled(look)
        if not wait:
            raise WouldBlock
        synced = {number: self._sync(number) for number in look.volatile}
        if not any(synced.values()):
            (look,) = self.look([digests])
            return _settled(look)

        def apply(txn: Transaction) -> Footprint:
            for number, end in synced.items():
                row = self._index.segment(txn, number)
                if end and row is not None and row.synced_to < end:
                    self._index.put_segment(txn, number, row._replace(synced_to=end))
            (look,) = self._look(txn, [digests])
            return _settled(look)

        return self._index_writer.run(apply, rows=ROWS + len(synced))

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

    def look(self, closures: Sequence[Sequence[Digest]]) -> "list[Look]":
        """One look at all of ``closures``. Promises nothing."""
        with self._index.reading() as txn:
            return self._look(txn, closures)

    def _look(self, txn: Transaction, closures: Sequence[Sequence[Digest]]) -> "list[Look]":
        keys = sorted({digest[0] for digests in closures for digest in digests})
        found, rows = self._index.find_in(txn, keys)
        entries = dict(zip(found, ENTRY.iter_unpack(b"".join(found.values())), strict=True))
        return [_seen(digests, entries, rows) for digests in closures]

    def remember(self, closures: Sequence[KnownClosure]) -> None:
        """Write the rows of closures, with the next transaction."""
        for some in pieces(closures, _REMEMBERED_AT_ONCE):
            values = [(known.row, closure_rows.encoded(known.stamp, known.footprint.places)) for known in some]
            rows = ROWS + sum([1 + len(value) // 128 for _, value in values])
            self._index_writer.submit_lazily(functools.partial(self._write, values), rows=rows)

    def _write(self, values: Sequence[tuple[bytes, bytes]], txn: Transaction) -> None:
        for row, value in values:
            txn.put(row, value, db=self._index.closures)

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


class Look(NamedTuple):
    """What one transaction saw of some blobs."""

    missing: list[Digest]
    volatile: list[int]
    """Segments that must be synced before all that is needed of them is durable."""
    places: list[closure_rows.Place]

    @property
    def footprint(self) -> Footprint | None:
        """Where they lie, if all are held and durable."""
        return None if self.missing or self.volatile else Footprint(tuple(sorted(self.places)))


def _seen(
    digests: Sequence[Digest], entries: Mapping[bytes, tuple[int, int, int, int]], rows: Mapping[int, SegmentRow]
) -> Look:
    """What is to be said of ``digests``, of whose blobs these are the index's rows."""
    missing: list[Digest] = []
    ends: dict[int, int] = {}
    for digest in digests:  # once per blob of an artifact
        entry = entries.get(digest[0])
        if entry is None or entry[2] != digest[1]:
            missing.append(digest)
            continue
        number = entry[0]
        end = entry[1] + record_bytes(entry[2])
        if end > ends.get(number, 0):
            ends[number] = end
    return Look(
        missing=missing,
        volatile=[number for number, end in ends.items() if rows[number].synced_to < end],
        places=[(number, rows[number].incarnation) for number in ends],
    )


def _settled(look: Look) -> Footprint:
    footprint = look.footprint
    if footprint is None:
        # What is not missing has moved, or was lost and uploaded again, since it was synced.
        raise BlobNotFound(
            f"blob {look.missing[0]} is not in this cache" if look.missing else "a blob was replaced meanwhile"
        )
    return footprint


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
