"""What a pusher may do."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from millpond.core.digest import Digest
from millpond.core.errors import MillpondError, NoSpace
from millpond.core.names import Namespace
from millpond.core.seldom import Seldom
from millpond.services import assets
from millpond.services.assets import AssetPush, PendingPush
from millpond.services.cache import Cache
from millpond.store.interface import Bytes, Upload

_seldom = Seldom(logging.getLogger(__name__))


class Writer:
    """The writing half of one instance, for one principal. Made by admission only."""

    def __init__(self, cache: Cache, instance: str, identity: str) -> None:
        self._cache = cache
        self._instance = instance
        self._identity = identity

    def put_blobs(self, blobs: Sequence[tuple[Digest, Bytes]]) -> list[MillpondError | None]:
        """Store a batch; per blob None or why not (``BatchUpdateBlobs``)."""
        outcomes = self._cache.blobs.put_many(blobs)
        refused = [blob[0] for blob, why in zip(blobs, outcomes, strict=True) if isinstance(why, NoSpace)]
        if refused:
            self._refuse(refused)
        counts = self._cache.counts
        counts.bytes_written += sum([blob[0][1] for blob, why in zip(blobs, outcomes, strict=True) if why is None])
        return outcomes

    def put_named(self, digest: Digest, data: Bytes) -> None:
        """Store a blob that a name is about to stand for.

        Raises:
            NoSpace, NotReady: it is not stored.
        """
        (failure,) = self.put_blobs([(digest, data)])
        if failure is not None:
            raise failure
        if self._cache.index_only:
            self._cache.closures.settle([digest])  # I2: an index settles nothing when a name is pushed

    def holds(self, digest: Digest) -> bool:
        """Whether ``digest`` is here; if so it is promised."""
        return not self._cache.blobs.find_missing([digest])

    def begin_upload(self, digest: Digest, session: str, *, offset: int) -> Upload:
        """Begin or go on with a streamed upload.

        Raises:
            InvalidRequest: it cannot go on at ``offset``.
            NoSpace: no room for it.
        """
        with self._refusing(digest):
            return self._cache.blobs.begin_upload(digest, session, offset=offset)

    def write_upload(self, upload: Upload, digest: Digest, data: Bytes) -> None:
        """Take the next bytes.

        Raises:
            DigestMismatch: more than the blob has.
            NoSpace: the disk filled up meanwhile.
        """
        with self._refusing(digest):
            upload.write(data)

    def finish_upload(self, upload: Upload, digest: Digest) -> None:
        """Verify and store what was uploaded.

        Raises:
            DigestMismatch: the bytes are not the blob.
            NoSpace: no room after all.
        """
        with self._refusing(digest):
            upload.finish()
        self._cache.counts.bytes_written += digest.size_bytes

    @contextmanager
    def _refusing(self, digest: Digest) -> Iterator[None]:
        """Remember that there was no room: the name that follows must not count as one whose blobs live elsewhere."""
        try:
            yield
        except NoSpace:
            self._refuse([digest])
            raise

    def _refuse(self, digests: Sequence[Digest]) -> None:
        _seldom.say(
            logging.WARNING,
            "room",
            f"no room for {len(digests)} blobs, the first of them {digests[0]}: raise the quota",
        )
        self._cache.closures.refuse(digests)

    def upload_offset(self, digest: Digest, session: str) -> int:
        """Where an interrupted upload goes on; 0 when it must begin anew."""
        # More is kept of one that was interrupted while its blob was put away: what stands behind a blob's bytes.
        return min(digest.size_bytes, self._cache.blobs.upload_offset(session))

    def begin_push(self, namespace: Namespace, request: AssetPush, *, wait: bool = True) -> PendingPush:
        """Begin to bind a name to a closure that is held and durable.

        Raises:
            InvalidRequest, IncompleteClosure, NoSpace, WouldBlock: as ``services.assets.begin_push``.
        """
        return assets.begin_push(self._cache, self._instance, namespace, request, pushed_by=self._identity, wait=wait)
