"""The roles that storage plays for the rest of Millpond."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from millpond.core.digest import Digest
from millpond.core.errors import MillpondError

Bytes = bytes | bytearray | memoryview


class BlobStore(Protocol):
    """Immutable blobs, addressed by digest.

    A store verifies; it never trusts. Bytes that do not hash to their digest are neither stored nor served. The empty
    blob is always present. Methods may be called from any thread. With ``wait=False`` a method never blocks and raises
    :class:`~millpond.core.errors.WouldBlock` instead, having done nothing.

    Implementations prove themselves by passing ``tests/conformance/test_blob_store.py``, not by inheriting.
    """

    def find_missing(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Digest]:
        """Those of ``digests`` that are not held, in their order.

        The others are *promised*: they stay until the push that names them, or for ``limits.LEASE_MS`` (I8).
        """

    def put_many(self, blobs: Sequence[tuple[Digest, Bytes]]) -> list[MillpondError | None]:
        """Store blobs; per blob None or why not (``DigestMismatch``, ``NoSpace``). Each succeeds or fails alone.

        Stored blobs are promised. They survive a kill of the process at once, and power loss after :meth:`Closures.settle`.
        """

    def read_many(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Bytes | None]:
        """The bytes of each blob, or None where it is not held (or held but corrupt). Counts as use."""

    def open(self, digest: Digest, *, wait: bool = True) -> AbstractContextManager["OpenBlob"]:
        """One blob to be read in chunks. Counts as use; a reader that has begun always finishes (I5).

        Raises:
            BlobNotFound: not held, or held but corrupt.
        """

    def begin_upload(self, digest: Digest, session: str, *, offset: int) -> "Upload":
        """Begin (``offset`` 0) or go on with a streamed upload. ``session`` is the whole resource name.

        Room for the whole blob is claimed before this returns (I6).

        Raises:
            InvalidRequest: nothing that ends at ``offset`` was uploaded under this session.
            NoSpace: no room for a blob of this size.

        """

    def upload_offset(self, session: str) -> int:
        """The offset at which :meth:`begin_upload` would go on with ``session``; 0 when it would start anew."""

    def close(self) -> None:
        """Let go of files and threads. Repeating it is fine."""


class OpenBlob(Protocol):
    """A blob that is being read. May be used from any thread, by one at a time."""

    def chunk(self, index: int, *, wait: bool = True) -> Bytes:
        """The ``index``-th MiB (``limits.CHUNK_BYTES``) of the blob; the last one may be shorter.

        Raises:
            BlobNotFound: the bytes are no longer what they were; none of them leaves (I4).
        """


class Upload(Protocol):
    """One streamed upload. Used by one thread at a time; ends in exactly one of finish, suspend, abandon."""

    @property
    def committed_bytes(self) -> int:
        """Bytes accepted so far."""

    def write(self, data: Bytes) -> None:
        """Accept the next bytes.

        Raises:
            DigestMismatch: more bytes than the digest says.

        """

    def finish(self) -> None:
        """Verify and store.

        Raises:
            DigestMismatch: the bytes are not the blob. Nothing is kept.

        """

    def suspend(self) -> None:
        """Keep what came for a later :meth:`BlobStore.begin_upload` (a broken connection)."""

    def abandon(self) -> None:
        """Forget what came."""


class Footprint(NamedTuple):
    """Where a closure lies: what must still be there for it to be whole. Opaque to all but the store."""

    places: tuple[tuple[int, int], ...]


class Promised(NamedTuple):
    """What :meth:`Closures.promise` found."""

    missing: list[Digest]
    footprint: Footprint | None
    """Where all of them lie, if they are durable already: then there is nothing to settle. None: settle."""


class KnownClosure(NamedTuple):
    """What a name stands for, and where all that it needs lies."""

    row: bytes
    """``Name.row``."""
    stamp: bytes
    """``Binding.stamp``."""
    footprint: Footprint
    promised_ms: int = 0
    """All of its blobs were promised since then; 0: nobody knows."""


class Closures(Protocol):
    """What a store does for names: it makes their blobs durable, and tells in microseconds if all are still there."""

    def settle(self, digests: Sequence[Digest], *, wait: bool = True) -> Footprint:
        """Make promised blobs durable and check, in one fresh look, that all are still held (I2).

        Raises:
            BlobNotFound: one is gone.
            NotReady: the disk refused to say that they are durable.
            WouldBlock: something must be synced first, and ``wait`` is False.

        """

    def promise(self, closures: Sequence[Sequence[Digest]], *, leases: bool, wait: bool = True) -> "list[Promised]":
        """For each of ``closures`` which of it are not held; when all are, they are promised.

        With ``leases`` until the push is through that names them; without, as what was used a moment ago: by a fetch.
        Unlike :meth:`BlobStore.find_missing` it is no client who is told that they are held, so no lease of a client
        depends on it. And what is left of a broken closure is not promised: it would stay in the place of whole ones.

        Raises:
            NotReady: what is to be leased could not be noted.
            WouldBlock: there is a lock or a disk to wait for, and ``wait`` is False. Nothing was promised.
        """

    def remember(self, closures: Sequence[KnownClosure], *, ends_leases: bool = False) -> None:
        """Note where these lie; counts as use. ``ends_leases``: they were just pushed, and leased for that."""

    def intact(self, row: bytes, stamp: bytes, *, wait: bool = True) -> bool:
        """Whether all that was remembered is still there, and if so, count it as used.

        False says only "walk it": it may be whole nevertheless.
        """

    def refuse(self, digests: Iterable[Digest]) -> None:
        """Remember for ``limits.REFUSED_MS`` that there was no room for these."""

    def was_refused(self, digests: Iterable[Digest]) -> bool:
        """Whether one of these was refused of late, or so many were that nobody can tell."""

    def holds_any(self, digests: Sequence[Digest]) -> bool:
        """Whether one of these is held, without promising anything."""
