"""What a puller may do."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

from millpond.core.digest import Digest
from millpond.core.errors import BlobNotFound
from millpond.core.names import Namespace
from millpond.services import assets, trees
from millpond.services.assets import Asset, Qualifiers
from millpond.services.cache import Cache
from millpond.store.interface import Bytes, OpenBlob


class Reader:
    """The reading half of one instance. Made by admission only."""

    def __init__(self, cache: Cache, instance: str) -> None:
        self._cache = cache
        self._instance = instance

    def find_missing(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Digest]:
        """Those that are not held; the others are promised (``ContentAddressableStorage.FindMissingBlobs``)."""
        return self._cache.blobs.find_missing(digests, wait=wait)

    def read_blobs(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Bytes | None]:
        """The bytes of each, or None (``BatchReadBlobs``)."""
        return self._cache.blobs.read_many(digests, wait=wait)

    def open_blob(self, digest: Digest, *, wait: bool = True) -> AbstractContextManager[OpenBlob]:
        """One blob in chunks.

        Raises:
            BlobNotFound: not held.
        """
        return self._cache.blobs.open(digest, wait=wait)

    def tree(self, root: Digest) -> Iterator[tuple[Digest, Bytes]]:
        """Every Directory at and below ``root`` that is held, ``root`` first, in an order that never changes.

        Raises:
            BlobNotFound: ``root`` is not held (remote_execution.proto, ``GetTree``); holes below it are passed over.
            InvalidRequest: a blob in the tree is not a Directory.
        """
        for digests, contents in trees.levels(self._cache.blobs, [root]):
            for digest, content in zip(digests, contents, strict=True):
                if content is not None:
                    yield digest, content
                elif digest == root:
                    raise BlobNotFound(f"the tree's root, blob {root}, is not in this cache")

    def fetch(
        self,
        namespace: Namespace,
        uris: Sequence[str],
        qualifiers: Qualifiers,
        *,
        oldest_ms: int | None = None,
        wait: bool = True,
    ) -> Asset:
        """The first of ``uris`` that is bound, fresh and whole.

        Raises:
            NameNotFound: none is.
        """
        return assets.fetch(self._cache, self._instance, namespace, uris, qualifiers, oldest_ms=oldest_ms, wait=wait)
