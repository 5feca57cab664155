"""Finding blobs and reading them, without noting their use.

Readers hold no lock: look up, take the cached descriptor or open the file; where it is gone, eviction was faster than
this reader, so look up again, three times, then it is a miss. What is still listed by then was lost, not evicted.
"""

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import BlobNotFound
from millpond.store.index import ENTRY, Entry, Index
from millpond.store.interface import Bytes, OpenBlob
from millpond.store.segments.files import SegmentFiles
from millpond.store.segments.format import Damaged
from millpond.store.segments.reading import Found, Quarantine, SegmentBlob, read_found

_LOOKS = 3
_SIZE = operator.itemgetter(Entry._fields.index("size_bytes"))


class SegmentLookup:
    """The reading half of a segment store."""

    def __init__(self, index: Index, files: SegmentFiles, quarantine: Quarantine) -> None:
        self._index = index
        self._files = files
        self._quarantine = quarantine

    def held(self, digests: Sequence[Digest]) -> list[Digest]:
        """Those of ``digests`` that the index lists. Promises nothing."""
        # All of this is done once per digest, so it is done by passes over all of them: a digest is a (key, size) pair.
        wanted = dict(digests)
        with self._index.reading() as txn:
            found = self._index.find(txn, sorted(wanted))
        if not found:
            return []
        sizes = dict(zip(found, map(_SIZE, ENTRY.iter_unpack(b"".join(found.values()))), strict=True))
        if sizes == wanted and len(wanted) == len(digests):
            return list(digests)
        get = sizes.get
        return [digest for digest in digests if get(digest[0]) == digest[1]]

    def read_many(self, digests: Sequence[Digest], *, wait: bool) -> list[Bytes | None]:
        """The bytes of each, or None.

        Raises:
            WouldBlock: not in the page cache and ``wait`` is False.
        """
        contents: dict[Digest, Bytes] = {EMPTY: b""}
        gone: list[Found] = []
        for _ in range(_LOOKS):
            found = self._look_up([digest for digest in digests if digest not in contents])
            read, gone = read_found(self._files, found, self._quarantine, wait=wait)
            contents.update(read)
            if not gone:
                break
        for lost in gone:  # eviction takes the entry away first (I3): this file was lost
            self._quarantine(*lost)
        return [contents.get(digest) for digest in digests]

    def open(self, digest: Digest, *, wait: bool) -> AbstractContextManager[OpenBlob]:  # noqa: ARG002 - a look-up
        """One blob in chunks.

        Raises:
            BlobNotFound: not held.
        """
        if digest == EMPTY:
            return nullcontext(_EmptyBlob())
        for look in range(1, _LOOKS + 1):
            found = self._look_up([digest])
            if not found:
                break
            entry = found[0][1]
            try:
                return nullcontext(SegmentBlob(self._files.get(entry.segment), digest, entry, self._quarantine))
            except (FileNotFoundError, Damaged) as failure:
                if look == _LOOKS or isinstance(failure, Damaged):
                    self._quarantine(digest, entry)
                    break
        raise BlobNotFound(f"blob {digest} is not in this cache")

    def _look_up(self, digests: Sequence[Digest]) -> list[tuple[Digest, Entry]]:
        wanted = list(dict.fromkeys(digests))
        with self._index.reading() as txn:
            found = self._index.find(txn, sorted([digest[0] for digest in wanted]))
        held = [digest for digest in wanted if digest[0] in found]
        entries = ENTRY.iter_unpack(b"".join([found[digest[0]] for digest in held]))
        return [
            (digest, Entry._make(entry)) for digest, entry in zip(held, entries, strict=True) if entry[2] == digest[1]
        ]


class _EmptyBlob:
    """Always present and never stored."""

    def chunk(self, index: int, *, wait: bool = True) -> bytes:  # noqa: ARG002
        return b""
