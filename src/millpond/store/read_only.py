"""A repository that we may only read: everything that is there is served, nothing is noted."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import BlobNotFound, MillpondError, NotReady
from millpond.store.index import Entry, Index
from millpond.store.interface import Bytes, Footprint, KnownClosure, OpenBlob, Promised, Upload
from millpond.store.repository.layout import Layout
from millpond.store.segments.files import SegmentFiles
from millpond.store.segments.lookup import SegmentLookup
from millpond.store.segments.reading import Quarantine
from millpond.store.uses.counts import Counts

log = logging.getLogger(__name__)
_REFUSAL = "this cache can only be read: its disk or its permissions do not allow more"


class ReadOnlyStore:
    """``BlobStore`` and ``Closures`` that keep no promise beyond the present: nothing here is ever evicted by us.

    ``damaged`` is told of blobs that do not verify; they are a miss.
    """

    def __init__(self, layout: Layout, index: Index, *, damaged: Quarantine = lambda *found: _damaged(*found)) -> None:
        self.counts = Counts()
        self._files = SegmentFiles(layout.segments)
        self._lookup = SegmentLookup(index, self._files, damaged)

    def find_missing(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Digest]:  # noqa: ARG002
        """Those that are not held."""
        held = {*self._lookup.held(digests), EMPTY}
        return [digest for digest in digests if digest not in held]

    def put_many(self, blobs: Sequence[tuple[Digest, Bytes]]) -> list[MillpondError | None]:
        """Refused."""
        return [NotReady(_REFUSAL) for _ in blobs]

    def read_many(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Bytes | None]:
        """The bytes of each, or None."""
        return self._lookup.read_many(digests, wait=wait)

    def open(self, digest: Digest, *, wait: bool = True) -> AbstractContextManager[OpenBlob]:
        """One blob, in chunks."""
        return self._lookup.open(digest, wait=wait)

    def begin_upload(self, digest: Digest, session: str, *, offset: int) -> Upload:  # noqa: ARG002
        """Refused."""
        raise NotReady(_REFUSAL)

    def upload_offset(self, session: str) -> int:  # noqa: ARG002
        """No upload was ever begun."""
        return 0

    def promise(
        self,
        closures: Sequence[Sequence[Digest]],
        *,
        leases: bool,  # noqa: ARG002
        wait: bool = True,
    ) -> list[Promised]:
        """As :meth:`find_missing`."""
        return [Promised(self.find_missing(digests, wait=wait), None) for digests in closures]

    def settle(self, digests: Sequence[Digest], *, wait: bool = True) -> Footprint:  # noqa: ARG002
        """Look only."""
        for digest in self.find_missing(digests):
            raise BlobNotFound(f"blob {digest} is not in this cache")
        return Footprint(())

    def remember(self, closures: Sequence[KnownClosure], *, ends_leases: bool = False) -> None:
        """Nothing is noted; the next fetch walks again."""

    def intact(self, row: bytes, stamp: bytes, *, wait: bool = True) -> bool:  # noqa: ARG002
        """Never known without a walk."""
        return False

    def refuse(self, digests: Iterable[Digest]) -> None:
        """Nothing is noted."""

    def was_refused(self, digests: Iterable[Digest]) -> bool:  # noqa: ARG002
        """Everything is."""
        return True

    def holds_any(self, digests: Sequence[Digest]) -> bool:
        """Whether one is held."""
        return EMPTY in digests or bool(self._lookup.held(digests))

    def drop_departed(self) -> None:
        """Let go of segments that were evicted, by whoever may."""
        self._files.drop_departed()

    def close(self) -> None:
        """Let files go."""
        self._files.close()


def _damaged(digest: Digest, entry: Entry) -> None:
    log.error("blob %s is damaged in segment %08x at %d", digest, entry.segment, entry.offset)
