"""What a puller may do."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

from millpond.core.digest import Digest
from millpond.core.errors import BlobNotFound, NameNotFound
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
        missing = self._cache.blobs.find_missing(digests, wait=wait)
        counts = self._cache.counts
        counts.blobs_absent += len(missing)
        counts.blobs_present += len(digests) - len(missing)
        return missing

    def read_blobs(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Bytes | None]:
        """The bytes of each, or None (``BatchReadBlobs``)."""
        contents = self._cache.blobs.read_many(digests, wait=wait)
        sizes = [len(content) for content in contents if content is not None]
        self._read(len(sizes), len(contents) - len(sizes), sum(sizes))
        return contents

    def open_blob(self, digest: Digest, *, wait: bool = True) -> AbstractContextManager[OpenBlob]:
        """One blob in chunks.

        Raises:
            BlobNotFound: not held.
        """
        try:
            opened = self._cache.blobs.open(digest, wait=wait)
        except BlobNotFound:
            self._read(0, 1, 0)
            raise
        self._read(1, 0, digest.size_bytes)
        return opened

    def tree(self, root: Digest) -> Iterator[tuple[Digest, Bytes]]:
        """Every Directory at and below ``root`` that is held, ``root`` first, in an order that never changes.

        Raises:
            BlobNotFound: ``root`` is not held (remote_execution.proto, ``GetTree``); holes below it are passed over.
            InvalidRequest: a blob in the tree is not a Directory.
        """
        for digests, contents in trees.levels(self._cache.blobs, [root]):
            sizes = [len(content) for content in contents if content is not None]
            self._read(len(sizes), len(contents) - len(sizes), sum(sizes))
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
        try:
            asset = assets.fetch(
                self._cache, self._instance, namespace, uris, qualifiers, oldest_ms=oldest_ms, wait=wait
            )
        except NameNotFound:
            self._cache.counts.names_missed += 1
            raise
        self._cache.counts.names_found += 1
        return asset

    def _read(self, found: int, missed: int, size_bytes: int) -> None:
        counts = self._cache.counts
        counts.blobs_read += found
        counts.blobs_missed += missed
        counts.bytes_read += size_bytes
