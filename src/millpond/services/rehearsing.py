"""A rehearsal of moving in: what would come is read and verified, and nothing of it is kept.

The rule: no blob and no name is written. What was found to be right counts as held from then on, so that every blob is read
once. How much finds room is estimated; the rest is as it would be.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from millpond.core.digest import Digest
from millpond.core.errors import DigestMismatch, MillpondError
from millpond.store.interface import BlobStore, Bytes, OpenBlob

_BLOB_BYTES = 400
"""About what a blob takes beside its bytes: the rest of its record, and its entries in footer and index."""
_NAME_BYTES = 4096


class RehearsedStore:
    """A ``BlobStore`` that verifies what it is given and remembers only that it was right. Reads from ``here``."""

    def __init__(self, here: BlobStore) -> None:
        self.cost_bytes = 0
        """What all that was given would take."""
        self._here = here
        self._right: set[Digest] = set()

    def find_missing(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Digest]:
        """Those that are not held and were not given."""
        return [digest for digest in self._here.find_missing(digests, wait=wait) if digest not in self._right]

    def put_many(self, blobs: Sequence[tuple[Digest, Bytes]]) -> list[MillpondError | None]:
        """Verify each."""
        return [self._judged(digest, is_right=digest.matches(data)) for digest, data in blobs]

    def read_many(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Bytes | None]:
        """Of those that are held."""
        return self._here.read_many(digests, wait=wait)

    def open(self, digest: Digest, *, wait: bool = True) -> AbstractContextManager[OpenBlob]:
        """One that is held."""
        return self._here.open(digest, wait=wait)

    def begin_upload(self, digest: Digest, session: str, *, offset: int) -> "RehearsedUpload":  # noqa: ARG002
        """Begin to verify."""
        return RehearsedUpload(self, digest)

    def upload_offset(self, session: str) -> int:  # noqa: ARG002
        """None is kept."""
        return 0

    def close(self) -> None:
        """Nothing is open."""

    def judge(self, digest: Digest, *, is_right: bool) -> None:
        """Take note of a blob.

        Raises:
            DigestMismatch: it is not what its digest says.
        """
        if failure := self._judged(digest, is_right=is_right):
            raise failure

    def _judged(self, digest: Digest, *, is_right: bool) -> MillpondError | None:
        if not is_right:
            return DigestMismatch(f"the bytes are not blob {digest}")
        self._right.add(digest)
        self.cost_bytes += _cost_bytes(digest)
        return None


class RehearsedUpload:
    """A blob that is verified in pieces."""

    def __init__(self, store: RehearsedStore, digest: Digest) -> None:
        self.committed_bytes = 0
        self._store = store
        self._digest = digest
        self._hash = digest.function.hasher()

    def write(self, data: Bytes) -> None:
        """Take the next bytes in."""
        self._hash.update(data)
        self.committed_bytes += len(data)

    def finish(self) -> None:
        """Verify.

        Raises:
            DigestMismatch: the bytes are not the blob.
        """
        is_right = self.committed_bytes == self._digest.size_bytes and self._hash.digest() == self._digest.key[1:]
        self._store.judge(self._digest, is_right=is_right)

    def suspend(self) -> None:
        """Nothing is kept."""

    def abandon(self) -> None:
        """Nothing is kept."""


class EstimatedRoom:
    """About how much fits beside what is here and what was rehearsed so far."""

    def __init__(self, store: RehearsedStore, *, left_bytes: int, quota_bytes: int) -> None:
        """``left_bytes``: so much may be added before eviction would begin."""
        self._store = store
        self._left_bytes = left_bytes
        self._quota_bytes = quota_bytes

    def fits(self, blobs: Sequence[Digest]) -> bool:
        """Whether these find room, too."""
        return self._store.cost_bytes + _NAME_BYTES + sum(map(_cost_bytes, blobs)) <= self._left_bytes

    def could_fit(self, blobs: Sequence[Digest]) -> bool:
        """Whether they would in an empty cache."""
        return _NAME_BYTES + sum(map(_cost_bytes, blobs)) <= self._quota_bytes


def _cost_bytes(digest: Digest) -> int:
    return digest.size_bytes + _BLOB_BYTES
