"""What a pusher may do."""

from collections.abc import Sequence

from millpond.core.digest import Digest
from millpond.core.errors import MillpondError, NoSpace
from millpond.core.names import Namespace
from millpond.services import assets
from millpond.services.assets import AssetPush, PendingPush
from millpond.services.cache import Cache
from millpond.store.interface import Bytes, Upload


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
            self._cache.closures.refuse(refused)
        return outcomes

    def holds(self, digest: Digest) -> bool:
        """Whether ``digest`` is here; if so it is promised."""
        return not self._cache.blobs.find_missing([digest])

    def begin_upload(self, digest: Digest, session: str, *, offset: int) -> Upload:
        """Begin or go on with a streamed upload.

        Raises:
            InvalidRequest: it cannot go on at ``offset``.
            NoSpace: no room for it.
        """
        try:
            return self._cache.blobs.begin_upload(digest, session, offset=offset)
        except NoSpace:
            self._cache.closures.refuse([digest])
            raise

    def finish_upload(self, upload: Upload, digest: Digest) -> None:
        """Verify and store what was uploaded.

        Raises:
            DigestMismatch: the bytes are not the blob.
            NoSpace: no room after all.
        """
        try:
            upload.finish()
        except NoSpace:
            self._cache.closures.refuse([digest])
            raise

    def upload_offset(self, session: str) -> int:
        """Where an interrupted upload goes on; 0 when it must begin anew."""
        return self._cache.blobs.upload_offset(session)

    def begin_push(self, namespace: Namespace, request: AssetPush, *, wait: bool = True) -> PendingPush:
        """Begin to bind a name to a closure that is held and durable.

        Raises:
            InvalidRequest, IncompleteClosure, NoSpace, WouldBlock: as ``services.assets.begin_push``.
        """
        return assets.begin_push(self._cache, self._instance, namespace, request, pushed_by=self._identity, wait=wait)
